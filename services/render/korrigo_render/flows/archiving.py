"""Render lets go of the final PDFs of archived copies. Started by `korrigo archive_old_exams`; rows of renders stay."""

from __future__ import annotations

from collections.abc import Sequence

from korrigo_kit.room import Runtime

_REFERENCES = "owner_kind = 'render' AND split_part(owner_id, ':', 1) = ANY(%s)"


def blobs_of(rt: Runtime, copy_ids: Sequence[str]) -> list[str]:
    """List the content that render refers to on behalf of these copies."""
    with rt.db.transaction() as tx:
        rows = tx.all(
            f"SELECT DISTINCT sha256 FROM blob_refs WHERE {_REFERENCES} ORDER BY sha256", (list(copy_ids),)
        )
    return [row["sha256"] for row in rows]


def purge(rt: Runtime, copy_ids: Sequence[str], *, event_ids: Sequence[str]) -> None:
    """Refer to nothing any more on behalf of these copies; may be repeated."""
    with rt.db.transaction() as tx:
        tx.run(f"DELETE FROM blob_refs WHERE {_REFERENCES}", (list(copy_ids),))
        tx.run("DELETE FROM event_texts WHERE event_id = ANY(%s::uuid[])", (list(event_ids),))
