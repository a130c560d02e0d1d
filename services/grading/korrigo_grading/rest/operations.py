"""The state of the product over HTTP, for those who keep it running (`/api/ops` is grading's: decisions.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, Field

from korrigo_grading.flows import overview as flow
from korrigo_grading.models.control_room import Firing, Progress, Server
from korrigo_kit.clock import rfc3339
from korrigo_kit.rest import Caller, room_runtime
from korrigo_kit.room import Runtime
from korrigo_kit.stuck import Stuck as StuckWork
from korrigo_kit.stuck import count
from korrigo_kit.telemetry import figures
from korrigo_kit.telemetry.figures import Told

api = APIRouter(prefix="/api/ops", tags=["operations"])
_SHOWN = 50
Rt = Annotated[Runtime, Depends(room_runtime("grading"))]


class StatusCount(BaseModel):
    """Copies of one status."""

    count: int
    oldest_seconds: float = Field(description="Since the longest unchanged of them changed; 0 = there is none.")


class Backlog(BaseModel):
    """Things that wait, and how long the first of them has."""

    count: int
    oldest_seconds: float = Field(description="0 = there is none.")


class Locks(BaseModel):
    """Locks on copies; expired ones are swept within seconds."""

    active: int
    stale: int = Field(description="The holder is silent; others may take over.")
    expired: int


class Sessions(BaseModel):
    """Who is logged in."""

    open: int
    people: int


class Part(BaseModel):
    """A relay, sweeper or worker of grading; `watchdog` = the alerting, heard every few minutes."""

    name: str
    silent_seconds: float = Field(description="Since it last said that it lives; a living one says it every 5 to 10 s.")


class Peer(BaseModel):
    """Another room."""

    name: str
    is_serving: bool = Field(description="False = it did not answer within a second.")


class StuckItem(BaseModel):
    """Something that is not healed by itself; `korrigo doctor` says why, `korrigo intervene` heals."""

    room: str
    stage: str = Field(description="import, finalize or lock.")
    reason: str = Field(description="lost_task, worker_dead, no_progress, retries_exhausted or lock_expired.")
    subject_type: str = Field(description="copy or scan.")
    subject_id: str
    since: str = Field(description="RFC 3339, UTC.")
    copies: int = Field(description="Copies that wait for it.")
    attempts: int
    error_reason: str = Field(description="Of the last failure; empty = there was none.")


class Stuck(BaseModel):
    """What the sweepers could not heal, in every room that answers."""

    copies: int
    by_reason: dict[str, dict[str, int]] = Field(description="Copies by stage and reason; only what there is.")
    items: list[StuckItem] = Field(description="The 50 that have been stuck longest.")


class Service(BaseModel):
    """How a service answered over HTTP within the window, all its replicas together."""

    name: str = Field(description="A room, or korrigo where one process holds them all.")
    replicas: int
    requests: int
    server_errors: int = Field(description="Answers of 500 and above.")
    p95_seconds: float | None = Field(description="Event streams and /metrics left out; null = nothing was asked.")


class Activity(BaseModel):
    """What the living processes of all rooms counted lately; one that ended took its figures along."""

    window_seconds: float = Field(description="Of the process that has counted longest, at most 900.")
    processes: int
    imports: dict[str, int] = Field(description="That ended: success or failed.")
    finalisations: dict[str, int] = Field(description="Attempts that ended: success or failed.")
    ocr_errors: dict[str, int] = Field(description="By error_type; only what there was.")
    lock_conflicts: dict[str, int] = Field(description="By conflict_type.")
    object_store_errors: dict[str, int] = Field(description="By operation.")
    interventions: dict[str, int] = Field(description="By result.")
    login_failures: int
    services: list[Service]
    unheard: list[str] = Field(description="Rooms that did not tell: what they counted is missing here.")


class ExamProgress(BaseModel):
    """An exam with copies that are not graded yet."""

    exam_id: str
    name: str
    copies: int
    graded: int
    graded_last_hour: int
    remaining_seconds: float | None = Field(description="At the pace of the last hour; null while nobody finalises.")


class FinalPdfs(BaseModel):
    """Final PDFs of the last hour, and how long they took from the request on."""

    made: int
    failed: int = Field(description="No attempt follows.")
    p50_seconds: float | None = Field(description="null = none was made.")
    p95_seconds: float | None
    p99_seconds: float | None


class FiringAlert(BaseModel):
    """An alert that fires, as Alertmanager told it."""

    name: str
    priority: str = Field(description="P0 is the most urgent.")
    severity: str
    scenario: str = Field(description="What `korrigo doctor scenario` takes.")
    since: str = Field(description="RFC 3339, UTC.")
    firing: int = Field(description="How many of its kind fire.")
    summary: str
    first_response: str
    runbook_url: str
    dashboard_url: str


class DatabaseServer(BaseModel):
    """The database server at this moment."""

    connections: int
    busy: int = Field(description="All but idle ones.")
    allowed: int
    blocked: int = Field(description="Sessions that wait for a lock of another.")
    oldest_query_seconds: float = Field(description="Of the rooms; 0 = none runs.")


class Broker(BaseModel):
    """The broker, and what waits in the queues of every room."""

    is_up: bool
    queues: dict[str, dict[str, int]] = Field(
        description="Messages by queue and state: ready, and unacked where the broker tells."
    )


class Volume(BaseModel):
    """Room on a file system that the product writes to."""

    name: str
    size_bytes: int
    available_bytes: int


class Versions(BaseModel):
    """What runs."""

    korrigo: str
    postgresql: str
    # Not `schema`: pydantic's models have a method of that name.
    database_schema: str = Field(description="Newest migration of grading.")


class Summary(BaseModel):
    """All that a control room needs, at one moment."""

    at: str = Field(description="RFC 3339, UTC, by the database's clock.")
    copies: dict[str, StatusCount] = Field(description="By status; every status is there.")
    finalising: Backlog = Field(description="Copies whose final PDF is asked for and not made.")
    locks: Locks
    jobs: dict[str, dict[str, int]] = Field(description="Grading's own jobs by kind and state.")
    oldest_due_job_seconds: float = Field(description="How long the first due job of grading has waited; 0 = none.")
    outbox: Backlog = Field(description="Events that grading has not told yet.")
    sessions: Sessions
    parts: list[Part]
    peers: list[Peer]
    stuck: Stuck
    activity: Activity
    alerts: list[FiringAlert] = Field(description="The most urgent first; empty too when no Alertmanager tells us.")
    exams: list[ExamProgress] = Field(description="The 50 newest that are not done.")
    final_pdfs: FinalPdfs
    database: DatabaseServer
    broker: Broker
    backup_age_seconds: float = Field(description="Of the last good backup; before the first, since the installation.")
    volumes: list[Volume] = Field(description="Only those that are folders of this machine.")
    versions: Versions


@api.get("/summary")
def read_summary(caller: Caller, rt: Rt, response: Response) -> Summary:
    """Tell the state of the product: copies, exams and their end, what is stuck, alerts, backlogs, parts, resources.

    Admins and auditors only; the same figures as the metrics, for installations without a monitoring system.
    """
    found = flow.overview(rt, caller)
    response.headers["Cache-Control"] = "no-store"
    return Summary(
        at=rfc3339(found.at),
        copies={status: StatusCount(count=n, oldest_seconds=oldest) for status, (n, oldest) in found.copies.items()},
        finalising=_backlog(found.finalising),
        locks=Locks(**found.locks),
        jobs=found.jobs,
        oldest_due_job_seconds=found.oldest_due,
        outbox=_backlog(found.outbox),
        sessions=Sessions(open=found.sessions, people=found.people),
        parts=[Part(name=name, silent_seconds=silent) for name, silent in found.parts.items()],
        stuck=_stuck(found.stuck),
        activity=_activity(found.told, found.unheard),
        alerts=[_firing(alert) for alert in found.alerts],
        exams=[_progress(exam) for exam in found.exams],
        final_pdfs=FinalPdfs(**asdict(found.pace)),
        database=_database(found.server),
        broker=Broker(is_up=found.queues is not None, queues=found.queues or {}),
        backup_age_seconds=found.backup_age,
        peers=[Peer(name=name, is_serving=is_serving) for name, is_serving in found.peers.items()],
        volumes=[Volume(name=v.name, size_bytes=v.size, available_bytes=v.free) for v in found.volumes],
        versions=Versions(
            korrigo=found.versions["korrigo"],
            postgresql=found.versions["postgresql"],
            database_schema=found.versions["schema"],
        ),
    )


def _stuck(found: Sequence[StuckWork]) -> Stuck:
    by_reason: dict[str, dict[str, int]] = {}
    for labels, copies in count(found).items():
        by_reason.setdefault(labels[0], {})[labels[1]] = int(copies)
    return Stuck(
        copies=sum(item.copies for item in found),
        by_reason=by_reason,
        items=[
            StuckItem(
                room=item.room,
                stage=item.stage,
                reason=item.reason,
                subject_type=item.subject_type,
                subject_id=item.subject_id,
                since=rfc3339(item.since),
                copies=item.copies,
                attempts=item.attempts,
                error_reason=item.error_reason,
            )
            for item in found[:_SHOWN]
        ],
    )


def _activity(told: Sequence[Told], unheard: Sequence[str]) -> Activity:
    numbers = figures.total(told)

    def by_label(sample: str) -> dict[str, int]:
        return {label: round(value) for (name, label), value in sorted(numbers.items()) if name == sample}

    return Activity(
        window_seconds=max((one.seconds for one in told), default=0),
        processes=len(told),
        imports=by_label("grading_import_duration_seconds_count"),
        finalisations=by_label("grading_finalize_duration_seconds_count"),
        ocr_errors=by_label("grading_ocr_errors_total"),
        lock_conflicts=by_label("grading_lock_conflicts_total"),
        object_store_errors=by_label("grading_object_store_errors_total"),
        interventions=by_label("grading_interventions_total"),
        login_failures=sum(by_label("grading_login_failures_total").values()),
        services=[_service(name, told) for name in sorted({one.service for one in told})],
        unheard=list(unheard),
    )


def _service(name: str, told: Sequence[Told]) -> Service:
    own = [one for one in told if one.service == name]
    numbers = figures.total(own)
    answers = {status: value for (sample, status), value in numbers.items() if sample == "http_requests_total"}
    return Service(
        name=name,
        replicas=len(own),
        requests=round(sum(answers.values())),
        server_errors=round(sum(value for status, value in answers.items() if status.startswith("5"))),
        p95_seconds=figures.quantile(0.95, numbers),
    )


def _firing(alert: Firing) -> FiringAlert:
    return FiringAlert(**asdict(alert) | {"since": rfc3339(alert.since)})


def _progress(exam: Progress) -> ExamProgress:
    return ExamProgress(
        exam_id=exam.exam_id,
        name=exam.name,
        copies=exam.copies,
        graded=exam.graded,
        graded_last_hour=exam.last_hour,
        remaining_seconds=exam.remaining_seconds,
    )


def _database(server: Server) -> DatabaseServer:
    return DatabaseServer(
        connections=server.connections,
        busy=server.busy,
        allowed=server.allowed,
        blocked=server.blocked,
        oldest_query_seconds=server.oldest_query,
    )


def _backlog(found: tuple[int, float]) -> Backlog:
    count, oldest_seconds = found
    return Backlog(count=count, oldest_seconds=oldest_seconds)
