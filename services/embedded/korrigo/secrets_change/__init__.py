"""Changing what is secret in an installation without a failed request. Used by `korrigo secrets`.

    embedded    what `korrigo up` made itself: files that the running processes read again
    children    ending children of `korrigo up`, one after another, so that they start with what is new
    steps       new material and the steps for an installation whose settings are somebody else's
    checking    whether what is configured is what the rooms and the database accept
"""
