"""`korrigo audit verify`: is the memory whole?"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from korrigo import installation

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)
EXIT_FOUND_PROBLEMS = 9


@app.callback()
def audit() -> None:
    """Verify the audit trail. Example: korrigo audit verify"""


@app.command()
def verify(
    copy: Annotated[str | None, typer.Option(help="only this copy")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
) -> None:
    """Check sequences, hashes and last numbers; exit code 9 when something is wrong. Example: korrigo audit verify"""
    from korrigo.runtimes import runtime
    from korrigo_audit.flows import verification

    installation.attach()
    with runtime("audit") as room:
        verdict = verification.verify(room, ("copy", copy) if copy else None)
    if as_json:
        typer.echo(json.dumps(asdict(verdict) | {"is_valid": verdict.is_valid}))
    else:
        typer.echo(f"{verdict.records} records in {verdict.streams} streams")
        for finding in verdict.findings:
            where = f"{finding.subject_type} {finding.subject_id}, {finding.source} {finding.source_seq}"
            typer.echo(f"{finding.code}: {where}")
        for name in verdict.unreachable:
            typer.echo(f"unchecked: {name} did not tell its last numbers")
        if verdict.is_valid:
            typer.echo("valid")
    if not verdict.is_valid:
        raise typer.Exit(EXIT_FOUND_PROBLEMS)
