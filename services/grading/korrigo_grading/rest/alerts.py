"""Alertmanager's webhook, and the alerts as the product heard them."""

from __future__ import annotations

import hmac
from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import AwareDatetime, BaseModel, Field

from korrigo_grading.flows import alerting as flow
from korrigo_grading.models.alerts import Alert as AlertRow
from korrigo_grading.models.alerts import Group as GroupRow
from korrigo_grading.settings import AlertingSettings
from korrigo_kit.auth import Principal
from korrigo_kit.clock import rfc3339
from korrigo_kit.outbox import SYSTEM_ACTOR
from korrigo_kit.rest import Caller, Page, authenticate, decode_cursor, encode_cursor, room_runtime
from korrigo_kit.rest.paging import Cursor, Limit
from korrigo_kit.room import Runtime

api = APIRouter(prefix="/api/ops/alerts", tags=["operations"])
Rt = Annotated[Runtime, Depends(room_runtime("grading"))]
# Alertmanager may add to its document: what we do not know is not refused.
Texts = dict[str, str]


class ToldAlert(BaseModel):
    """One alert of a notification."""

    status: Literal["firing", "resolved"]
    labels: Texts
    annotations: Texts = Field(default_factory=dict)
    startsAt: AwareDatetime  # noqa: N815 - Alertmanager's name
    endsAt: AwareDatetime | None = Field(None, description="Means something only when it is resolved.")  # noqa: N815
    fingerprint: str = Field(min_length=1, max_length=200)


class Notification(BaseModel):
    """Alertmanager's webhook document, version 4."""

    version: Literal["4"]
    groupKey: str = Field(min_length=1)  # noqa: N815
    truncatedAlerts: int = Field(0, ge=0)  # noqa: N815
    status: Literal["firing", "resolved"]
    groupLabels: Texts = Field(default_factory=dict)  # noqa: N815
    alerts: list[ToldAlert] = Field(min_length=1, max_length=5000)


class Heard(BaseModel):
    """What became of a notification."""

    group_id: str | None = Field(description="The episode of the group; null when nothing of it is kept.")
    recorded: int = Field(description="Alerts that began or ended.")
    repeated: int = Field(description="Alerts that were known.")
    ignored: int = Field(description="The watchdog and test alerts.")


class Alert(BaseModel):
    """One alert of a group."""

    status: Literal["firing", "resolved"]
    started_at: str
    ended_at: str | None
    labels: Texts
    annotations: Texts


class Group(BaseModel):
    """One episode of a group of alerts: from the first that fired until none does."""

    id: str
    status: Literal["firing", "resolved"]
    labels: Texts = Field(description="What its alerts were grouped by.")
    started_at: str
    ended_at: str | None
    alerts: list[Alert]
    left_out: int = Field(description="Alerts that were counted and not kept.")


def teller(request: Request, rt: Rt) -> Principal:
    """Return who tells: an account, or Alertmanager itself by the token of the settings.

    That token is there before the first account is, so that an installation hears its alerts from the start.
    """
    token = rt.settings.watched(AlertingSettings).now().token.get_secret_value()
    scheme, _, shown = request.headers.get("authorization", "").partition(" ")
    # As bytes, because a header may hold what is not ASCII.
    if token and scheme.lower() == "bearer" and hmac.compare_digest(shown.strip().encode(), token.encode()):
        return Principal(SYSTEM_ACTOR, "alertmanager", ("auditor",))
    return authenticate(request)


@api.post("")
def receive_alerts(body: Notification, caller: Annotated[Principal, Depends(teller)], rt: Rt) -> Heard:
    """Take a notification of Alertmanager; repeats change nothing, also while the installation is read-only.

    Admins and auditors, and whoever shows the token of KORRIGO_ALERTING__TOKEN. Severity none and test alerts (label
    `korrigo_test`) open no group.
    """
    told = [
        AlertRow(
            fingerprint=alert.fingerprint,
            started_at=alert.startsAt,
            ended_at=(alert.endsAt or alert.startsAt) if alert.status == "resolved" else None,
            labels=alert.labels,
            annotations=alert.annotations,
        )
        for alert in body.alerts
    ]
    heard = flow.receive(rt, caller, flow.Notification(body.groupKey, body.groupLabels, told, body.truncatedAlerts))
    return Heard(group_id=heard.group_id, recorded=heard.recorded, repeated=heard.repeated, ignored=heard.ignored)


@api.get("")
def list_alerts(
    caller: Caller,
    rt: Rt,
    response: Response,
    status: Annotated[Literal["firing", "resolved"] | None, Query(description="Only groups of this status.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[Group]:
    """List groups of alerts with their timeline, newest first. Admins and auditors only."""
    after = decode_cursor(cursor, str, str)
    is_firing = None if status is None else status == "firing"
    found = flow.page(rt, caller, is_firing=is_firing, after=(after[0], after[1]) if after else None, limit=limit + 1)
    response.headers["Cache-Control"] = "no-store"
    last = found[limit - 1] if len(found) > limit else None
    return Page(
        items=[_group(group) for group in found[:limit]],
        next_cursor=encode_cursor(rfc3339(last.started_at), last.id) if last else None,
    )


def _group(group: GroupRow) -> Group:
    return Group(
        id=group.id,
        status="resolved" if group.ended_at else "firing",
        labels=dict(group.labels),
        started_at=rfc3339(group.started_at),
        ended_at=_moment(group.ended_at),
        left_out=group.left_out,
        alerts=[
            Alert(
                status="resolved" if alert.ended_at else "firing",
                started_at=rfc3339(alert.started_at),
                ended_at=_moment(alert.ended_at),
                labels=dict(alert.labels),
                annotations=dict(alert.annotations),
            )
            for alert in group.alerts
        ],
    )


def _moment(moment: datetime | None) -> str | None:
    return rfc3339(moment) if moment else None
