"""How an object is changed: only when it differs, and whole, so that what no longer holds goes away."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from korrigo_kit.errors import KorrigoError
from korrigo_operator.cluster import Cluster, Document
from korrigo_operator.kinds import Condition, Model

log = logging.getLogger("korrigo.operator")

PAUSE = "korrigo.io/reconcile"
PAUSED = "paused"


def annotations_of(item: Document) -> dict[str, str]:
    """Return an object's annotations."""
    return dict(item["metadata"].get("annotations") or {})


def is_paused(item: Document) -> bool:
    """Tell whether somebody stopped the operator at this object."""
    return annotations_of(item).get(PAUSE) == PAUSED


def condition(
    old: Document | None,
    type_: str,
    is_true: bool | None,
    reason: str,
    message: str,
    now: datetime,
    generation: int = 0,
) -> Condition:
    """Return a condition; its time of last change is kept while its status is the same. `is_true` None = unknown."""
    status = "Unknown" if is_true is None else str(bool(is_true))
    before = next((found for found in (old or {}).get("conditions", ()) if found.get("type") == type_), None)
    since = now if before is None or before.get("status") != status else before["lastTransitionTime"]
    return Condition.model_validate(
        {
            "type": type_, "status": status, "reason": reason, "message": message[:500],
            "lastTransitionTime": since, "observedGeneration": generation,
        }
    )  # fmt: skip


def has_changed(old: Document | None, type_: str, reason: str) -> bool:
    """Tell whether a condition has another reason than before."""
    return all(
        found.get("type") != type_ or found.get("reason") != reason for found in (old or {}).get("conditions", ())
    )


def write(
    cluster: Cluster, plural: str, item: Document, *, spec: Model | None = None, status: Model | None = None
) -> None:
    """Bring an object's spec or status to this, if it differs; one that is gone is left alone."""
    name = item["metadata"]["name"]
    for part, wanted in (("spec", spec), ("status", status)):
        if wanted is None:
            continue
        old, new = item.get(part) or {}, wanted.document()
        if type(wanted).model_validate(old).document() != new if old else True:
            cluster.patch(plural, name, {part: _whole(old, new)}, part="status" if part == "status" else "")


def _whole(old: Document, new: Document) -> Document:
    """Return the merge patch that makes one document of another: what is not in the new one goes."""
    gone: dict[str, Any] = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        gone[key] = _whole(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return gone


def each(items: Sequence[Document], what: str, do: Any) -> int:
    """Do something with every object; one that fails does not stop the others. Returns how many failed."""
    failed = 0
    for item in items:
        try:
            do(item)
        except KorrigoError as error:
            failed += 1
            name = item["metadata"]["name"]
            log.warning("%s %s was not reconciled: %s", what, name, error.reason, extra={"reason": error.reason})
    return failed
