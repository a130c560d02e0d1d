"""`korrigo check_data_integrity`: do rows, stored bytes and the audit trail agree?"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from korrigo.operating import EXIT_FOUND_PROBLEMS, ActAs, AsJson, DryRun, Progress, operation, tell

if TYPE_CHECKING:
    from korrigo.integrity import Finding

app = typer.Typer(add_completion=False, rich_markup_mode=None)
_SHOWN = 200


@app.command()
def check_data_integrity(
    fix: Annotated[bool, typer.Option("--fix", help="heal what can be healed without a choice")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="only look whether content is there, do not read it")] = False,
    dry_run: DryRun = False,
    act_as: ActAs = None,
    as_json: AsJson = False,
) -> None:
    """Check every room, every stored byte and the audit trail; exit code 9 while something is wrong.

    --fix unlocks what is locked without a lock, ends locks of copies that are not LOCKED, brings content back from
    the trash and fetches events that were missed; nothing else is touched. Example: korrigo check_data_integrity --fix
    """
    from korrigo.integrity import Check
    from korrigo.rooms import NAMES

    progress = Progress()
    with operation(*NAMES, act_as=act_as) as at:
        findings = Check(at, progress, is_quick=quick).run()
        if fix and findings:
            Check.fix(at, findings, is_dry_run=dry_run)
            if not dry_run:
                fixed = [finding for finding in findings if finding.is_fixed]
                left = Check(at, progress, is_quick=True).run()
                known = {(finding.code, finding.subject) for finding in left}
                for finding in fixed:
                    finding.is_fixed = (finding.code, finding.subject) not in known
    progress.end()
    wrong = [finding for finding in findings if not finding.is_fixed or dry_run]
    lines = [_line(finding, "would be fixed" if dry_run else "fixed") for finding in findings[:_SHOWN]]
    more = [f"... and {len(findings) - _SHOWN} more"] if len(findings) > _SHOWN else []
    summary = f"{len(findings)} findings, {len(findings) - len(wrong)} fixed" if findings else "everything agrees"
    tell(
        as_json,
        {"dry_run": dry_run, "is_sound": not wrong, "findings": [asdict(finding) for finding in findings]},
        *lines,
        *more,
        summary,
    )
    if wrong:
        raise typer.Exit(EXIT_FOUND_PROBLEMS)


def _line(finding: Finding, fixed: str) -> str:
    end = f"  ({fixed})" if finding.is_fixed else ""
    return f"{finding.room:8} {finding.code:28} {finding.subject}  {finding.detail}{end}"
