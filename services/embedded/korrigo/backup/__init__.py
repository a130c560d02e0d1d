"""Backup and recovery: taken from the running product, restored on trial before it counts, swapped in atomically.

    archive    what a backup is on disk, and whether it is whole
    tables     what is asked of a database: dump, load, counts, switch of names
    servers    the server behind it: the instance's own, or a scratch one that lives for a minute
    trial      is this database what the backup says?
    taking     the story of a backup
    restoring  the story of a restore
    schedule   when the next one is due; the only module that `korrigo up` itself loads
"""
