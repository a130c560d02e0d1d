"""What an incident is and how it is told, with or without Kubernetes. Pure: nothing here reads, writes or asks.

    record      one incident as a value
    levels      who has to know by now (charts/korrigo/files/escalation.yaml)
    words       what a report says, in English and in French
    report      the report template of domain.md 1.23

`korrigo incident` keeps incidents as files and gathers what they tell.
"""
