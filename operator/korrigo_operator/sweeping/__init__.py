"""One sweep: ask every room, reconcile every object with what they tell. Started by `handlers`.

Level-triggered: every status is made anew from what is there now, so that whatever was missed, killed half-way or
changed by hand is right after the next sweep. A sweep remembers nothing that it needs.

    rooms ─► StuckCopies ─► policies ─► Interventions ─► the room that acts ─► Incidents ─► GradingPolicy's status
"""
