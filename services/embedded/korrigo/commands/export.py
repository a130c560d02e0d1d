"""`korrigo export annotations COPY`: the marking of a copy as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer

from korrigo.operating import ActAs, AsJson, operation, tell
from korrigo_kit.errors import Unavailable

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)


@app.callback()
def export() -> None:
    """Take data out of the product. Example: korrigo export annotations 0197…"""


@app.command("annotations")
def write_annotations(
    copy: Annotated[UUID, typer.Argument(help="id of the copy")],
    out: Annotated[Path | None, typer.Option(help="file to write; default: standard output")] = None,
    act_as: ActAs = None,
    as_json: AsJson = False,
) -> None:
    """Write the annotations and scores of a copy as one JSON object. Example: korrigo export annotations 0197…"""
    copy_id = str(copy)
    with operation("grading", act_as=act_as) as at:
        from korrigo_grading.domain import scheme
        from korrigo_grading.flows import annotating, reading, scoring
        from korrigo_kit.clock import rfc3339

        found, pages = reading.read(at["grading"], at.principal, copy_id)
        rows = annotating.listed(at["grading"], at.principal, copy_id, None, 100_000)
        sheet = scoring.read(at["grading"], at.principal, copy_id).sheet
        document = {
            "copy_id": copy_id,
            "anonymous_id": found.anonymous_id,
            "status": found.status,
            "revision": found.revision,
            "pages": len(pages),
            "total": scheme.number(sheet.total),
            "max_score": scheme.number(sheet.maximum),
            "annotations": [
                annotating.document(row)
                | {"created_at": rfc3339(row.created_at), "updated_at": rfc3339(row.updated_at)}
                for row in rows
            ],
        }
    if out is None:
        typer.echo(json.dumps(document, indent=None if as_json else 1, ensure_ascii=False))
        return
    try:
        out.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise Unavailable("FILE_NOT_WRITABLE", f"cannot write {out}: {error.strerror}") from error
    tell(as_json, {"copy_id": copy_id, "file": str(out), "annotations": len(rows)}, f"{out}: {len(rows)} annotations")
