"""Old exams leave the product: exported, the export verified, then destroyed. Used by `korrigo archive_old_exams`.

    file        the archive on disk: written, read and verified
    leaving     the order of things, which a kill at any moment does not break

An archive is a tar.gz that stands for itself:

    exams/ID/exam.json                 as it was, the marking scheme included
    exams/ID/copies.csv                a line per copy: code, status, mark
    exams/ID/copies/COPY.json          annotations, scores, appreciation, pages
    exams/ID/finals/COPY-rREVISION.pdf every graded revision
    exams/ID/events.jsonl              the audit trail of the exam, its copies and scans, leaves included
    manifest.json                      SHA-256 of every member, and what is to be destroyed
"""
