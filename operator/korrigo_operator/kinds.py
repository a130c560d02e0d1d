"""The four kinds of objects as typed models: what the custom resource definitions are generated from.

Read and written by the sweep (`sweeping`), described to the API server by `crds`. Every text has a longest length: the
cost of the API server's rules is counted by it, and an object must never outgrow etcd's 1.5 MB.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

GROUP = "korrigo.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
SINGLETON = "default"
MOST_STUCK_COPIES = 200

Action = Literal[
    "RetryImport", "RetryFinalize", "ForceUnlock", "ReleaseExpiredLocks", "RecreateAuditEvent", "CleanupTempFiles",
    "VerifyAudit",
]  # fmt: skip
Mode = Literal["Observe", "Suggest", "Auto"]
Stage = Literal["import", "finalize", "lock"]
StuckReason = Literal["lost_task", "worker_dead", "no_progress", "retries_exhausted", "lock_expired"]
Duration = Annotated[str, Field(pattern=r"^([0-9]{1,6}(s|m|h))+$", max_length=30)]
Short = Annotated[str, Field(max_length=100)]
Line = Annotated[str, Field(max_length=500)]
Id = Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", max_length=36)]
Count = Annotated[int, Field(ge=0, le=2_000_000_000)]


class Model(BaseModel):
    """Part of an object: camelCase outside, unknown fields left alone (a newer release may have written them)."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore")

    def document(self) -> dict[str, Any]:
        """Return it as the API server takes it, without what is not set."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class Condition(Model):
    """One observed condition, as Kubernetes' own kinds have them."""

    type: Annotated[str, Field(pattern=r"^[A-Za-z]+$", max_length=60)]
    status: Literal["True", "False", "Unknown"]
    reason: Annotated[str, Field(pattern=r"^[A-Za-z]+$", max_length=60)]
    message: Line = ""
    last_transition_time: AwareDatetime
    observed_generation: Count = 0


Conditions = Annotated[
    list[Condition],
    Field(max_length=10, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}),
]


# ---------------------------------------------------------------------------------------------- GradingPolicy
class StuckAfter(Model):
    """How long work may stand still before it counts; the rooms have a least time of their own (60 s)."""

    import_: Duration = Field(default="60s", alias="import", description="For imports.")
    finalize: Duration = Field(default="60s", description="For final PDFs.")


class Budget(Model):
    """How much the operator may do by itself."""

    per_sweep: Annotated[int, Field(ge=0, le=100)] = Field(default=20, description="Acts in one sweep.")
    per_hour: Annotated[int, Field(ge=0, le=10_000)] = Field(default=200, description="Acts in any hour.")
    per_subject: Annotated[int, Field(ge=0, le=10)] = Field(default=3, description="Acts on one copy or scan in a day.")
    cool_down: Duration = Field(default="1m", description="Time between two acts on one subject; doubles after each.")


class Breaker(Model):
    """When the operator stops acting because its acts do not help."""

    failures: Annotated[int, Field(ge=1, le=100)] = Field(
        default=5, description="Acts that failed in a row and subjects stuck again after an act, until it opens."
    )
    cool_down: Duration = Field(default="10m", description="Time after the last failure until one act is tried again.")


class Remediation(Model):
    """What the operator does about stuck work."""

    mode: Mode = Field(default="Auto", description="Observe shows, Suggest says what would help, Auto does it.")
    actions: Annotated[list[Action], Field(max_length=7, json_schema_extra={"x-kubernetes-list-type": "set"})] = Field(
        default=["RetryImport", "RetryFinalize", "ReleaseExpiredLocks", "VerifyAudit"],
        description="What it may do by itself; ForceUnlock and RecreateAuditEvent are left to people in any case.",
    )
    budget: Budget = Field(default_factory=Budget, description="How much it may do.")
    breaker: Breaker = Field(default_factory=Breaker, description="When it stops.")
    exhausted_after: Duration = Field(
        default="15m", description="When work whose attempts are used up is tried again, if its error may pass."
    )


class GradingPolicySpec(Model):
    """How stuck work is looked for and healed; there is one policy, named default."""

    sweep_interval: Duration = Field(default="30s", description="Time between two sweeps.")
    stuck_after: StuckAfter = Field(default_factory=StuckAfter, description="Age at which work counts as stuck.")
    lock_ttl: Duration = Field(
        default="60s", alias="lockTTL", description="How long a lock may linger after its lease ended."
    )
    max_stuck_copies: Annotated[int, Field(ge=1, le=MOST_STUCK_COPIES)] = Field(
        default=MOST_STUCK_COPIES, description="Most StuckCopy objects, the oldest first; counts are whole."
    )
    remediation: Remediation = Field(default_factory=Remediation, description="What is done about it.")
    paused: bool = Field(default=False, description="Look and tell, but do nothing, not even what a person asks for.")


class StuckCount(Model):
    """Copies stuck for one reason."""

    stage: Stage
    reason: StuckReason
    copies: Count


class GradingPolicyStatus(Model):
    """What the last sweep saw."""

    stuck: Count = Field(default=0, description="Copies that are stuck, in all.")
    by_reason: Annotated[list[StuckCount], Field(max_length=15)] = Field(default=[], description="By stage and reason.")
    expired_locks: Count = Field(default=0, description="Locks that linger after their lease ended.")
    acts_last_hour: Count = Field(default=0, description="Automatic acts of the last hour.")
    last_sweep_time: AwareDatetime | None = Field(default=None, description="When everything was last looked at.")
    conditions: Conditions = Field(default=[], description="Ready, Acting, AuditComplete, OutboxesDrained.")


# ---------------------------------------------------------------------------------------------- StuckCopy
class StuckCopySpec(Model):
    """What is stuck. Written by the operator, never a student's name."""

    room: Literal["ingest", "grading", "render"]
    stage: Stage
    reason: StuckReason
    since: AwareDatetime = Field(description="Since when it is stuck, by the room's clock.")
    copy_id: Id | None = Field(default=None, description="The copy, when it is one.")
    scan_id: Id | None = Field(default=None, description="The scan, when an import is stuck.")
    anonymous_id: Short | None = Field(default=None, description="What markers call the copy.")
    exam: Id | None = Field(default=None, description="Its exam.")
    copies: Count = Field(default=1, description="Copies that wait for it.")
    job_id: Short | None = Field(default=None, description="Its job.")
    error_reason: Short | None = Field(default=None, description="Reason of its last failure.")


Phase = Literal["Open", "Healing", "Waiting", "NeedsPerson", "Resolved"]


class StuckCopyStatus(Model):
    """What is done about it."""

    phase: Phase = "Open"
    attempts: Count = Field(default=0, description="Automatic acts on it in the last day.")
    last_attempt_time: AwareDatetime | None = None
    resolved_time: AwareDatetime | None = Field(default=None, description="When it was healed; deleted 10 min after.")
    suggested_action: Action | None = Field(default=None, description="What would help.")
    intervention: Short | None = Field(default=None, description="The last Intervention that the operator made for it.")
    evidence: Annotated[list[Line], Field(max_length=10)] = Field(default=[], description="What is known of the cause.")
    runbook_url: Line | None = Field(default=None, alias="runbookURL", description="The page that tells what to do.")
    message: Line = Field(default="", description="What the policy decided, and why.")
    conditions: Conditions = Field(default=[], description="Stuck, Acting.")


# ---------------------------------------------------------------------------------------------- Intervention
class Selector(Model):
    """Which of the StuckCopy objects; what is left out matches all."""

    stage: Stage | None = None
    reason: StuckReason | None = None
    exam: Id | None = None


class Target(Model):
    """What an intervention is about."""

    kind: Literal["copy", "exam", "scan", "all", "selected"]
    id: Id | None = Field(default=None, description="The copy, exam or scan.")
    selector: Selector | None = Field(default=None, description="With kind selected: which stuck copies.")


class InterventionSpec(Model):
    """One act of healing, done once; never changed after it was written."""

    action: Action
    target: Target
    reason: Annotated[str, Field(min_length=3, max_length=500)] = Field(
        description="Why; kept apart from the audit trail, which holds a commitment to it."
    )
    dry_run: bool = Field(default=False, description="Only tell what would be done.")
    requested_by: Short | None = Field(
        default=None, description="Name of the Korrigo admin who asks; without it the operator acts in its own name."
    )
    idempotency_key: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{8,64}$", max_length=64)] | None = Field(
        default=None, description="The same key never acts twice; default: the object's uid."
    )


InterventionPhase = Literal["Pending", "AwaitingApproval", "Running", "Succeeded", "Failed"]


class ActedOn(Model):
    """One subject of an intervention."""

    subject: Short
    is_done: bool
    note: Line = ""


class InterventionStatus(Model):
    """What came of it."""

    phase: InterventionPhase = "Pending"
    message: Line = ""
    affected: Count = Field(default=0, description="How many were acted on, or would be.")
    refused: Count = Field(default=0, description="How many refused.")
    problems: Count = Field(default=0, description="Problems that a verification found.")
    needs_approval: bool = Field(default=False, description="A second admin has to set korrigo.io/approved-by.")
    approved_by: Short | None = None
    items: Annotated[list[ActedOn], Field(max_length=20)] = Field(default=[], description="The first of them.")
    event_ids: Annotated[list[Short], Field(max_length=200)] = Field(
        default=[], description="Events of the audit trail."
    )
    targets: Annotated[list[Short], Field(max_length=MOST_STUCK_COPIES)] = Field(
        default=[], description="With kind selected: what it was about when it began."
    )
    start_time: AwareDatetime | None = None
    completion_time: AwareDatetime | None = None
    conditions: Conditions = Field(default=[], description="Approved, Complete.")


# ---------------------------------------------------------------------------------------------- Incident
class IncidentSpec(Model):
    """One episode of a group of alerts. The operator writes how it began; people add what they found."""

    group_id: Id = Field(description="The group of alerts at grading.")
    title: Line
    alertname: Short | None = None
    priority: Literal["P0", "P1", "P2", "P3"]
    severity: Short
    scenario: Short | None = None
    runbook_url: Line | None = Field(default=None, alias="runbookURL")
    start_time: AwareDatetime
    cause: Annotated[str, Field(max_length=2000)] | None = Field(
        default=None, description="The root cause; a person's."
    )
    actions: Annotated[list[Line], Field(max_length=20)] = Field(
        default=[], description="What will be done; a person's."
    )
    lessons: Annotated[list[Line], Field(max_length=20)] = Field(default=[], description="What was learnt; a person's.")


class TimelineEntry(Model):
    """One line of a timeline."""

    time: datetime
    kind: Literal["alert", "resolved", "act", "note"]
    text: Line


class IncidentStatus(Model):
    """How it goes."""

    phase: Literal["Firing", "Resolved"] = "Firing"
    level: Annotated[int, Field(ge=1, le=4)] = Field(default=1, description="Who has to know by now.")
    who: Short = ""
    end_time: AwareDatetime | None = None
    duration_seconds: Count = 0
    impact: Line = Field(default="", description="How much stood still when it was last looked at.")
    interventions: Annotated[list[Short], Field(max_length=50)] = Field(
        default=[], description="What was done meanwhile."
    )
    timeline: Annotated[list[TimelineEntry], Field(max_length=100)] = Field(
        default=[], description="What happened, in order."
    )
    report: Annotated[str, Field(max_length=60_000)] = Field(default="", description="The report, as Markdown.")
    conditions: Conditions = Field(default=[], description="Firing, Escalated.")
