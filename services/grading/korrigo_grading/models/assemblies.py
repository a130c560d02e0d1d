"""The pages of a copy as ingest told them: a higher assembly replaces a lower one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from korrigo_kit.db import Tx


@dataclass(frozen=True, slots=True)
class PageRow:
    """A page as displayed; width and height in points."""

    page_id: str
    page_index: int
    width: float
    height: float
    is_masked: bool
    picture_sha256: str
    masked_picture_sha256: str


_PAGES = (
    "SELECT copy_id::text AS copy_id, page_id::text AS page_id, page_index, width, height, is_masked, picture_sha256,"
    " masked_picture_sha256 FROM copy_pages"
)


def _page(row: dict[str, Any]) -> PageRow:
    return PageRow(**{key: value for key, value in row.items() if key != "copy_id"})


def pages(tx: Tx, copy_id: str) -> list[PageRow]:
    """List a copy's pages in order."""
    return [_page(row) for row in tx.all(f"{_PAGES} WHERE copy_id = %s ORDER BY page_index", (copy_id,))]


def pages_of(tx: Tx, copy_ids: Sequence[str]) -> dict[str, list[PageRow]]:
    """List the pages of several copies, by copy."""
    found: dict[str, list[PageRow]] = {copy_id: [] for copy_id in copy_ids}
    sql = f"{_PAGES} WHERE copy_id = ANY(%s::uuid[]) ORDER BY copy_id, page_index"
    for row in tx.all(sql, (list(copy_ids),)):
        found[row["copy_id"]].append(_page(row))
    return found


def find_page(tx: Tx, copy_id: str, page_id: str | None, page_index: int | None) -> PageRow | None:
    """Find a page of a copy by its id, its index, or both when they agree."""
    row = tx.one(
        f"{_PAGES} WHERE copy_id = %s AND (%s::uuid IS NULL OR page_id = %s::uuid)"
        " AND (%s::integer IS NULL OR page_index = %s::integer)",
        (copy_id, page_id, page_id, page_index, page_index),
    )
    return _page(row) if row else None


def stage(tx: Tx, *, copy_id: str, exam_id: str, anonymous_id: str, created_by: str) -> bool:
    """Insert a copy without pages; False when it was there."""
    return (
        tx.run(
            "INSERT INTO copies (id, exam_id, anonymous_id, created_by) VALUES (%s, %s, %s, %s)"
            " ON CONFLICT (id) DO NOTHING",
            (copy_id, exam_id, anonymous_id, created_by),
        )
        == 1
    )


def replace(
    tx: Tx,
    copy_id: str,
    *,
    assembly: int,
    source_sha256: str,
    source_size: int,
    pages: Sequence[Mapping[str, Any]],
    booklets: Sequence[Mapping[str, Any]],
    anomalies: Sequence[Mapping[str, Any]],
) -> bool:
    """Put an assembly in the place of a lower one; False when this or a higher one is there."""
    moved = tx.run(
        "UPDATE copies SET assembly = %(assembly)s, source_sha256 = %(sha256)s, source_size = %(size)s,"
        " version = version + 1, updated_at = clock_timestamp() WHERE id = %(id)s AND assembly < %(assembly)s",
        {"id": copy_id, "assembly": assembly, "sha256": source_sha256, "size": source_size},
    )
    if not moved:
        return False
    for table in ("copy_pages", "copy_booklets", "copy_anomalies"):
        tx.run(f"DELETE FROM {table} WHERE copy_id = %s", (copy_id,))
    tx.many(
        "INSERT INTO copy_pages (copy_id, page_id, page_index, width, height, is_masked, picture_sha256,"
        " masked_picture_sha256, scan_id, assembly) VALUES (%(copy_id)s, %(page_id)s, %(index)s, %(width)s,"
        " %(height)s, %(is_masked)s, %(picture_sha256)s, %(masked_picture_sha256)s, %(scan_id)s, %(assembly)s)",
        [{**page, "copy_id": copy_id, "assembly": assembly} for page in pages],
    )
    tx.many(
        "INSERT INTO copy_booklets (copy_id, booklet_id, position, start_page, end_page, page_ids)"
        " VALUES (%(copy_id)s, %(booklet_id)s, %(position)s, %(start_page)s, %(end_page)s, %(page_ids)s::uuid[])",
        [{**booklet, "copy_id": copy_id} for booklet in booklets],
    )
    tx.many(
        "INSERT INTO copy_anomalies (copy_id, position, code, scan_page, is_resolved)"
        " VALUES (%(copy_id)s, %(position)s, %(code)s, %(scan_page)s, %(is_resolved)s)",
        [{**anomaly, "copy_id": copy_id, "position": at} for at, anomaly in enumerate(anomalies)],
    )
    return True


def withdraw(tx: Tx, copy_id: str) -> bool:
    """Tombstone a copy; it leaves every list, its rows and events stay."""
    return (
        tx.run(
            "UPDATE copies SET deleted_at = clock_timestamp(), updated_at = clock_timestamp(), version = version + 1"
            " WHERE id = %s AND deleted_at IS NULL",
            (copy_id,),
        )
        == 1
    )


def ingest_seen(tx: Tx, copy_id: str) -> int:
    """Tell the number of ingest's last event on this copy that was applied here."""
    row = tx.one(
        "SELECT last_seq FROM inbox WHERE source = 'ingest' AND subject_type = 'copy' AND subject_id = %s"
        " AND kind = ''",
        (copy_id,),
    )
    return int(row["last_seq"]) if row else 0
