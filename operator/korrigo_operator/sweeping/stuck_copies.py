"""StuckCopy objects: made for what is stuck, told what is done about it, resolved, and deleted some minutes after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from korrigo_operator.asking import Seen
from korrigo_operator.cluster import Cluster, Document
from korrigo_operator.kinds import StuckCopySpec, StuckCopyStatus
from korrigo_operator.policies import healing, lifecycle
from korrigo_operator.policies.facts import ACT, ASK, LOOK, WAIT, Decision, Found, Limits
from korrigo_operator.policies.lifecycle import Key, Known
from korrigo_operator.sweeping import objects

PLURAL = "stuckcopies"
_PAGES = {"import": "import-stuck", "finalize": "finalization-failing", "lock": "expired-locks"}
_PHASES = {ACT: "Healing", WAIT: "Waiting", ASK: "NeedsPerson", LOOK: "Open"}


@dataclass
class Reconciled:
    """What came of it: decisions by the name of their object, and the objects."""

    decisions: dict[str, tuple[Found, Decision]] = field(default_factory=dict)
    items: dict[str, Document] = field(default_factory=dict)
    failed: int = 0


def name_of(key: Key) -> str:
    """Return the name of the object for a stage and an id."""
    return f"{key[0]}-{key[1]}"


def reconcile(cluster: Cluster, seen: Seen, limits: Limits, now: datetime, runbooks: str) -> Reconciled:
    """Bring the objects to what the rooms tell; returns what was decided about each that is stuck."""
    done = Reconciled(items={item["metadata"]["name"]: item for item in cluster.list(PLURAL)})
    known = {name: _known(item) for name, item in done.items.items()}
    alone = _fates(known, seen, now)
    chosen = _chosen(known, alone, seen, limits, now)
    names = {name_of((item.stage, item.id)) for item in chosen}
    rest = {name: (one, alone[name]) for name, one in known.items() if name not in names}
    writer = _Writer(cluster, now, runbooks)
    # First, so that what goes makes place for what comes: there are never more than the policy's most.
    fates = lifecycle.bounded(rest, limits.most - len(chosen))
    done.failed = sum(_let_go(writer, done, name, alone[name], fate) for name, fate in fates.items())
    for item, decision in healing.decide(chosen, limits, seen.acts, now):
        name = name_of((item.stage, item.id))
        before = done.items.get(name)
        if before is None and len(done.items) < limits.most:
            before = writer.create(name, item)
        if before is not None:
            done.items[name] = before
            done.decisions[name] = (item, decision)
    done.failed += objects.each(
        [done.items[name] for name in done.decisions], "StuckCopy",
        lambda item: writer.update(item, *done.decisions[item["metadata"]["name"]]),
    )  # fmt: skip
    return done


def _chosen(
    known: Mapping[str, Known], fates: Mapping[str, str], seen: Seen, limits: Limits, now: datetime
) -> list[Found]:
    paused = {one.key for one in known.values() if one.is_paused}
    live = [one.key for one in known.values() if one.resolved_at is None]
    found = [replace(item, is_paused=(item.stage, item.id) in paused) for item in seen.found]
    # What a person paused keeps its place while its room is silent: the annotation would be lost with the object.
    taken = sum(
        one.is_paused and one.resolved_at is None and fates[name] == lifecycle.KEEP for name, one in known.items()
    )
    return lifecycle.chosen(found, live, limits, now, taken)


def _let_go(writer: _Writer, done: Reconciled, name: str, alone: str, fate: str) -> int:
    failed = objects.each([done.items[name]], "StuckCopy", lambda item: writer.let_go(item, alone, fate))
    if fate == lifecycle.DELETE and not failed:
        del done.items[name]
    return failed


def _fates(known: Mapping[str, Known], seen: Seen, now: datetime) -> dict[str, str]:
    listed = {(item.stage, item.id) for item in seen.found}
    return {
        name: lifecycle.fate(one, listed, seen.complete_until.get(one.room), one.room not in seen.silent, now)
        for name, one in known.items()
    }


def _known(item: Document) -> Known:
    spec, status = item.get("spec") or {}, item.get("status") or {}
    resolved = status.get("resolvedTime")
    return Known(
        key=(spec["stage"], spec.get("copyId") or spec.get("scanId") or ""),
        room=spec["room"],
        since=datetime.fromisoformat(spec["since"]),
        resolved_at=datetime.fromisoformat(resolved) if resolved else None,
        is_paused=objects.is_paused(item),
    )


class _Writer:
    def __init__(self, cluster: Cluster, now: datetime, runbooks: str) -> None:
        self._cluster = cluster
        self._now = now
        self._runbooks = runbooks

    def create(self, name: str, found: Found) -> Document | None:
        labels = {"korrigo.io/stage": found.stage, "korrigo.io/reason": found.reason}
        made = self._cluster.create(PLURAL, "StuckCopy", {"name": name, "labels": labels}, _spec(found).document())
        if made is None:  # another operator was quicker: theirs is the same
            return self._cluster.get(PLURAL, name)
        what = f"{found.copies} copies wait" if found.copies != 1 else "one copy waits"
        self._cluster.tell(made, "Stuck", f"{found.stage} {found.reason}: {what}", is_warning=True)
        return made

    def update(self, item: Document, found: Found, decision: Decision) -> None:
        old = item.get("status")
        if objects.has_changed(old, "Acting", decision.reason) and decision.verdict in (ACT, ASK):
            self._cluster.tell(item, decision.reason, decision.message, is_warning=decision.verdict == ASK)
        objects.write(self._cluster, PLURAL, item, spec=_spec(found), status=self._status(old, found, decision))

    def _status(self, old: Document | None, found: Found, decision: Decision) -> StuckCopyStatus:
        now = self._now
        return StuckCopyStatus.model_validate(
            {
                "phase": _PHASES[decision.verdict],
                "attempts": found.tried,
                "lastAttemptTime": found.tried_at,
                "suggestedAction": decision.action or None,
                "intervention": (old or {}).get("intervention"),
                "evidence": _evidence(found),
                "runbookURL": f"{self._runbooks}{_page(found)}",
                "message": decision.message[:500],
                "conditions": [
                    objects.condition(old, "Stuck", True, "Stuck", f"{found.stage} {found.reason}", now),
                    objects.condition(old, "Acting", decision.verdict == ACT, decision.reason, decision.message, now),
                ],
            }
        )

    def let_go(self, item: Document, alone: str, fate: str) -> None:
        """Resolve or delete an object that is not among the chosen; `alone` is its fate if there were place for all."""
        if fate == lifecycle.DELETE:
            self._cluster.delete(PLURAL, item["metadata"]["name"], item["metadata"]["uid"])
        elif fate == lifecycle.RESOLVE:
            self._resolve(item)
        if alone == lifecycle.RESOLVE:
            self._cluster.tell(item, "Resolved", "no longer stuck")

    def _resolve(self, item: Document) -> None:
        old = item.get("status") or {}
        status = StuckCopyStatus.model_validate(
            {
                **old,
                "phase": "Resolved",
                "resolvedTime": self._now,
                "suggestedAction": None,
                "message": "no longer stuck",
                "conditions": [
                    objects.condition(old, "Stuck", False, "Resolved", "no longer stuck", self._now),
                    objects.condition(old, "Acting", False, "Resolved", "nothing is left to do", self._now),
                ],
            }
        )
        objects.write(self._cluster, PLURAL, item, status=status)


def _spec(found: Found) -> StuckCopySpec:
    return StuckCopySpec.model_validate(
        {
            "room": found.room, "stage": found.stage, "reason": found.reason, "since": found.since,
            "copyId": found.id if found.kind == "copy" else None, "scanId": found.id if found.kind == "scan" else None,
            "anonymousId": found.anonymous_id or None, "exam": found.exam_id or None, "copies": found.copies,
            "jobId": found.job_id or None, "errorReason": found.error_reason or None,
        }
    )  # fmt: skip


def _page(found: Found) -> str:
    if found.stage == "finalize" and found.reason == "retries_exhausted":
        return "retries-exhausted"
    return "workers-down" if found.reason == "worker_dead" else _PAGES[found.stage]


def _evidence(found: Found) -> list[str]:
    lines: Mapping[str, object] = {
        "told by": found.room,
        "attempts of its work": found.attempts,
        "workers lost under it": found.lost_leases,
        "last error": found.error_reason,
        "job": found.job_id,
    }
    return [f"{what}: {value}" for what, value in lines.items() if value]
