"""Incidents: what happened, who did what, what is learnt; and the evidence. Used by `korrigo incident`.

    book        an incident as two files: JSON, the truth, and a report for people
    timeline    what alerts, the audit trail and commands tell of a time
    journal     which commands were given on this machine
    evidence    the bundle of a moment
    redaction   nothing secret and no name leaves in a bundle
    isolation   nobody changes anything until somebody has understood

What an incident is and how its report reads is korrigo_kit.incidents. All of it works, with less in it, while the
database is away: that is when it is needed.
"""
