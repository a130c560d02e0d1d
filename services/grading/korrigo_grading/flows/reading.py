"""Copies as people see them: one, and the list of an exam. Started by `rest.copies`."""

from __future__ import annotations

from korrigo_grading.domain import access
from korrigo_grading.models import assemblies, copies, desk
from korrigo_grading.models.assemblies import PageRow
from korrigo_grading.models.copies import Copy
from korrigo_kit.auth import Principal
from korrigo_kit.errors import NotFound
from korrigo_kit.room import Runtime


def read(rt: Runtime, caller: Principal, copy_id: str) -> tuple[Copy, list[PageRow]]:
    """Return a copy that the caller may see, and its pages; raises Forbidden and NotFound (COPY_NOT_FOUND)."""
    with rt.db.transaction() as tx:
        copy = desk.visible(tx, caller, copy_id)
        return copy, assemblies.pages(tx, copy_id)


def page(
    rt: Runtime, caller: Principal, exam_id: str, status: str | None, after: tuple[str, str] | None, limit: int
) -> list[tuple[Copy, list[PageRow]]]:
    """List an exam's copies that the caller may see; raises Forbidden and NotFound (EXAM_NOT_FOUND)."""
    caller.require(*access.READERS)
    sees_all = caller.has(*access.SEES_ALL)
    with rt.db.transaction() as tx:
        correctors = copies.correctors(tx, exam_id)
        if correctors is None or not (sees_all or caller.user_id in correctors):
            raise NotFound("EXAM_NOT_FOUND", "there is no such exam")
        marker_id = None if sees_all else caller.user_id
        found = copies.page(tx, exam_id, status=status, marker_id=marker_id, after=after, limit=limit)
        pages = assemblies.pages_of(tx, [copy.id for copy in found])
    return [(copy, pages[copy.id]) for copy in found]
