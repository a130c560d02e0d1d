"""Incidents: what happened, who did what, what is learnt; and the evidence. Used by `korrigo incident`.

    book        one incident as a value and as two files: JSON, the truth, and a report for people
    levels      who has to know by now (charts/korrigo/files/escalation.yaml)
    timeline    what alerts, the audit trail and commands tell of a time
    report      the report template of domain.md 1.23
    journal     which commands were given on this machine
    evidence    the bundle of a moment
    redaction   nothing secret and no name leaves in a bundle
    isolation   nobody changes anything until somebody has understood

All of it works, with less in it, while the database is away: that is when it is needed.
"""
