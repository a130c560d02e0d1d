"""`korrigo intervene ACTION TARGET`: one reviewed act of healing, done once, in somebody's name.

The room that owns the data does it, asked over gRPC; the operator of a cluster asks for the very same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from korrigo import installation
from korrigo.operating import EXIT_FOUND_PROBLEMS, ActAs, AsJson, DryRun, tell
from korrigo_kit.errors import Invalid

if TYPE_CHECKING:
    from korrigo_protos.common.v1.operations_pb2 import InterveneResponse

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def intervene(
    action: Annotated[
        str,
        typer.Argument(
            help="RetryImport, RetryFinalize, ForceUnlock, ReleaseExpiredLocks, RecreateAuditEvent, CleanupTempFiles"
            " or VerifyAudit"
        ),
    ],
    target: Annotated[str, typer.Argument(help="copy/ID, exam/ID, scan/ID or all; an id alone is a copy's")],
    reason: Annotated[str, typer.Option(help="why; kept apart from the audit trail, which holds a commitment to it")],
    approved_by: Annotated[str | None, typer.Option(help="second admin, where one is needed")] = None,
    uid: Annotated[str | None, typer.Option(help="the same uid never acts twice; default: a new one")] = None,
    dry_run: DryRun = False,
    act_as: ActAs = None,
    as_json: AsJson = False,
) -> None:
    """Heal one thing, once: the same uid again only tells what was done. Exit code 9 when something refused.

    The lock of somebody at work, and whatever is stored into the audit trail again, need --as and --approved-by, two
    different admins. Example: korrigo intervene RetryFinalize copy/0197… --reason "disk has room again" --dry-run
    """
    from korrigo import rooms
    from korrigo_kit import context, operations
    from korrigo_kit.ids import new_id
    from korrigo_kit.interventions import ACTIONS, Asked
    from korrigo_kit.rpc import Channels

    installation.check_words([action], tuple(ACTIONS))
    kind, subject_id = _target(target)
    asked = Asked(uid or new_id(), action, kind, subject_id, reason, dry_run, act_as or "", approved_by or "")
    installation.attach()
    channels = Channels(rooms.load_settings().rpc, "cli")
    try:
        with context.bind(request_id=context.accept_request_id(None)):
            answer = operations.intervene(channels, asked)
    finally:
        channels.close()
    _tell(asked.uid, answer, as_json=as_json)
    if answer.refused or answer.problems:
        raise typer.Exit(EXIT_FOUND_PROBLEMS)


def _target(text: str) -> tuple[str, str]:
    kind, separator, subject_id = text.partition("/")
    if text == "all":
        return "all", ""
    if not separator:
        return "copy", text.lower()
    if kind not in ("copy", "exam", "scan") or not subject_id:
        raise Invalid("INVALID_TARGET", "a target is copy/ID, exam/ID, scan/ID or all")
    return kind, subject_id.lower()


def _tell(uid: str, answer: InterveneResponse, *, as_json: bool) -> None:
    items = [
        {
            "subject_type": item.subject_type,
            "subject_id": item.subject_id,
            "is_done": item.is_done,
            "note": item.note,
        }
        for item in answer.items
    ]
    lines = [f"{item['subject_type']} {item['subject_id']}: {item['note']}" for item in items]
    if answer.needs_approval:
        lines.append("needs --as ADMIN and --approved-by OTHER_ADMIN")
    if answer.is_replayed:
        lines.append("was done before; nothing was done now")
    fields = {
        "uid": uid,
        "state": answer.state,
        "dry_run": answer.state == "DRY_RUN",
        "affected": answer.affected,
        "refused": answer.refused,
        "problems": answer.problems,
        "is_replayed": answer.is_replayed,
        "needs_approval": answer.needs_approval,
        "event_ids": list(answer.event_ids),
        "items": items,
    }
    tell(as_json, fields, *lines, f"{answer.state}: {answer.affected} acted on, {answer.refused} refused, uid {uid}")
