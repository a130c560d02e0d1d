"""The rooms as the operator sees them: asked over gRPC, every answer turned into facts of the policies.

A room that does not answer is silent: what is known of it stays as it is, and the others are gone on with.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from korrigo_kit import operations
from korrigo_kit.errors import KorrigoError
from korrigo_kit.interventions import Asked
from korrigo_kit.rpc import Channels
from korrigo_kit.stuck import Stuck
from korrigo_kit.vitals import Vitals
from korrigo_operator.policies.episode import AlertEpisode, AlertTold
from korrigo_operator.policies.facts import DRAINED_SECONDS, Acts, Found
from korrigo_protos.audit.v1 import audit_pb2, audit_pb2_grpc
from korrigo_protos.common.v1.operations_pb2 import InterveneResponse
from korrigo_protos.grading.v1 import grading_pb2, grading_pb2_grpc

log = logging.getLogger("korrigo.operator")

NAMES = ("ingest", "grading", "render", "audit")
_ASK_SECONDS = 10
# Whoever acts longer goes on after we hung up: the next sweep hears what came of it. With the age at which a lease is
# renewed (10 s) less than the lease (30 s), so that nobody takes it over during an act.
ACT_SECONDS = 15
# Counting the whole trail takes about a second per million records.
_COUNT_SECONDS = 30


@dataclass
class Seen:
    """What the rooms told in one sweep."""

    found: list[Found] = field(default_factory=list)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    vitals: dict[str, Vitals] = field(default_factory=dict)
    silent: dict[str, str] = field(default_factory=dict)
    # Of rooms that told only the oldest: since when the last of them is stuck.
    complete_until: dict[str, datetime] = field(default_factory=dict)

    @property
    def acts(self) -> Acts:
        """The automatic acts of all rooms together."""
        failed = [found.acts_failed_at for found in self.vitals.values() if found.acts_failed_at is not None]
        acted = [found.acted_at for found in self.vitals.values() if found.acted_at is not None]
        return Acts(
            last_hour=sum(found.acts_last_hour for found in self.vitals.values()),
            failures=sum(found.acts_failed for found in self.vitals.values()),
            failed_at=max(failed, default=None),
            acted_at=max(acted, default=None),
            unproven=sum(found.acts_unproven for found in self.vitals.values()),
        )


def facts(stuck: Iterable[Stuck], vitals: Iterable[Vitals]) -> list[Found]:
    """Return what the rooms tell of their work, and of themselves, as the policies take it.

    The broker is one for all: where events of one room wait, nobody is rung for in another that has none to tell.
    """
    is_cut_off = any(told.outbox_oldest_seconds > DRAINED_SECONDS for told in vitals)
    return [_fact(item, is_cut_off=is_cut_off) for item in stuck]


def _fact(item: Stuck, *, is_cut_off: bool) -> Found:
    return Found(
        room=item.room, stage=item.stage, reason=item.reason, kind=item.subject_type, id=item.subject_id,
        since=item.since, copies=item.copies, job_id=item.job_id, attempts=item.attempts,
        lost_leases=item.lost_leases, error_reason=item.error_reason, exam_id=item.exam_id,
        anonymous_id=item.anonymous_id, tried=item.tried, tried_at=item.tried_at,
        is_cut_off=is_cut_off,
    )  # fmt: skip


class Rooms:
    """The four rooms."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    def look(self) -> Seen:
        """Ask every room what is stuck and how it is; never raises."""
        seen = Seen()
        stuck: list[Stuck] = []
        for room in NAMES:
            try:
                items, counts = operations.list_and_count(self._channels, room, seconds=_ASK_SECONDS)
                seen.vitals[room] = operations.get_vitals(self._channels, room, seconds=_ASK_SECONDS)
            except KorrigoError as error:
                log.warning("%s does not answer: %s", room, error.reason, extra={"reason": error.reason})
                seen.silent[room] = error.reason
                continue
            stuck += items
            seen.counts.update(counts)
            if len(items) >= operations.MAX_ITEMS:
                seen.complete_until[room] = max(item.since for item in items)
        seen.found = facts(stuck, seen.vitals.values())
        return seen

    def act(self, asked: Asked, *, seconds: float = ACT_SECONDS) -> InterveneResponse:
        """Have the room that owns it do an act; raises the room's error, Unavailable or Timeout."""
        return operations.intervene(self._channels, asked, seconds=seconds)

    def missing_events(self) -> int:
        """Count what the audit trail lacks; raises the room's error, Unavailable or Timeout."""
        with self._channels.asking("audit"):
            stub = self._channels.stub("audit", audit_pb2_grpc.AuditServiceStub)
            answer = stub.CountMissing(audit_pb2.CountMissingRequest(), timeout=_COUNT_SECONDS)
        return sum(int(found.events) for found in answer.counts)

    def alert_episodes(self, besides: Sequence[str] = ()) -> tuple[Sequence[AlertEpisode], Sequence[str]]:
        """List the newest episodes of groups of alerts and those of `besides`, and the ids of it that are unknown.

        Raises the room's error, Unavailable or Timeout.
        """
        with self._channels.asking("grading"):
            stub = self._channels.stub("grading", grading_pb2_grpc.AlertServiceStub)
            request = grading_pb2.ListAlertGroupsRequest(ids=besides)
            answer = stub.ListAlertGroups(request, timeout=_ASK_SECONDS)
        return [_episode(group) for group in answer.groups], list(answer.unknown_ids)

    def close(self) -> None:
        """Close the channels."""
        self._channels.close()


def _episode(group: grading_pb2.AlertGroup) -> AlertEpisode:
    return AlertEpisode(
        id=group.id,
        started_at=_moment(group.started_at_ms),
        ended_at=_moment(group.ended_at_ms) if group.ended_at_ms else None,
        alerts=tuple(_told(alert) for alert in group.alerts),
    )


def _told(alert: grading_pb2.Alert) -> AlertTold:
    texts: dict[str, Any] = {"labels": dict(alert.labels), "annotations": dict(alert.annotations)}
    ended_at = _moment(alert.ended_at_ms) if alert.ended_at_ms else None
    return AlertTold(started_at=_moment(alert.started_at_ms), ended_at=ended_at, **texts)


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
