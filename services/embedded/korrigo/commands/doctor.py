"""`korrigo doctor`: what keeps the product from running, how the running one feels, and why it is ill."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from korrigo.home import Home
from korrigo.operating import EXIT_FOUND_PROBLEMS, AsJson, DryRun, tell
from korrigo_kit.errors import NotFound, Unavailable

if TYPE_CHECKING:
    from korrigo.doctor.causes import Diagnosis
    from korrigo.doctor.patient import Patient

app = typer.Typer(add_completion=False, rich_markup_mode=None, invoke_without_command=True)
# What drills and scripts go by: a scenario is healthy, or a cause was named.
EXIT_CAUSE_NAMED = 1
Prometheus = Annotated[str, typer.Option(help="address of Prometheus; default: KORRIGO_MONITORING__PROMETHEUS_URL")]
Alertmanager = Annotated[
    str, typer.Option(help="address of Alertmanager; default: KORRIGO_MONITORING__ALERTMANAGER_URL")
]


@app.callback()
def doctor(
    ctx: typer.Context,
    deploy: Annotated[bool, typer.Option("--deploy", help="what is unsafe for real exams, though it works")] = False,
    as_json: AsJson = False,
) -> None:
    """Check this machine and the running product; exit code 9 when something is wrong. Example: korrigo doctor"""
    if ctx.invoked_subcommand is not None:
        return
    from korrigo.doctor import deploy as fitness
    from korrigo.doctor import health

    with _patient() as patient:
        findings = health.examine(patient, fitness.CHECKS if deploy else None)
        home = str(patient.home.root)
    tell(as_json, {"home": home, "checks": [asdict(finding) for finding in findings]}, *_health_lines(findings))
    if any(finding.is_ok is False for finding in findings):
        raise typer.Exit(EXIT_FOUND_PROBLEMS)


def _health_lines(findings: list[Any]) -> Iterator[str]:
    heading = ""
    for finding in findings:
        if finding.heading != heading:
            heading = finding.heading
            yield heading
        sign = {True: "ok  ", False: "BAD ", None: "-   "}[finding.is_ok]
        hint = f"  -> {finding.hint}" if finding.hint else ""
        yield f"  {sign} {finding.name:12} {finding.text}{hint}"


@app.command()
def scenario(
    name: Annotated[str, typer.Argument(help="import-stuck, finalization-failing, lock-conflicts, high-latency, "
                                             "missing-audit-events, database, broker, storage, monitoring, web, all")],
    prometheus: Prometheus = "",
    alertmanager: Alertmanager = "",
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Run a playbook's diagnosis: causes ranked by evidence, each with its remedies; exit code 1 when there is one.

    Changes nothing. Works with the database or the broker down. Example: korrigo doctor scenario import-stuck
    """
    from korrigo.doctor import registry
    from korrigo.doctor.names import SCENARIOS

    names = list(SCENARIOS) if name == "all" else [registry.scenario(name)]
    with _patient(prometheus, alertmanager) as patient:
        looked = registry.Looked(patient)
        found = [looked.diagnose(one) for one in names]
    is_healthy = all(one.is_healthy for one in found)
    whole: dict[str, Any] = {"scenario": "all", "healthy": is_healthy, "scenarios": [one.as_json() for one in found]}
    tell(as_json, whole if name == "all" else found[0].as_json(), *(line for one in found for line in _lines(one)))
    if not is_healthy:
        raise typer.Exit(EXIT_CAUSE_NAMED)


def _lines(found: Diagnosis) -> Iterator[str]:
    unknown = [item for item in found.checked if item["result"] == "unknown"]
    yield f"{found.scenario}: " + ("no cause found" if found.is_healthy else f"{len(found.causes)} causes, best first")
    for number, cause in enumerate(found.causes, 1):
        yield f"  {number}. {cause.cause} ({cause.certainty:.0%}): {cause.title}"
        yield from (f"       {text}" for text in cause.evidence)
        for remedy in cause.remedies:
            yield f"     > {remedy['what']}"
            if remedy["dry_run"]:
                yield f"       first: {remedy['dry_run']}"
            yield f"       {remedy['command']}"
        yield f"     runbook: docs/runbooks/{cause.runbook}.md"
    for item in unknown:
        yield f"  ? {item['cause']}: could not look: {item['note']}"


@app.command()
def db(
    end: Annotated[int | None, typer.Option(help="end the session of this pid, after looking at it")] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Ask PostgreSQL: slow statements, who blocks whom, connections, sizes and long transactions.

    With --end a session is cancelled, or ended when it is idle inside a transaction. Example: korrigo doctor db
    """
    from korrigo.doctor import postgres, sessions
    from korrigo.doctor.causes import Blind

    with _patient() as patient:
        if end is not None:
            done = sessions.end(patient, end, is_dry_run=dry_run)
            tell(as_json, {"dry_run": dry_run, **done}, f"{done['done']}: pid {end}, {done['user']}: {done['query']}")
            return
        try:
            found = postgres.report(patient)
        except Blind as blind:
            raise Unavailable("DATABASE_UNAVAILABLE", f"{blind}: {patient.database_error}") from None
    tell(as_json, found, *postgres.lines(found))


@app.command()
def monitoring(
    prometheus: Prometheus = "",
    alertmanager: Alertmanager = "",
    listen: Annotated[str, typer.Option(help="HOST:PORT of a webhook receiver of Alertmanager to stand in for")] = "",
    wait: Annotated[float, typer.Option(help="seconds to wait for the alert's arrival", min=1)] = 60,
    as_json: AsJson = False,
) -> None:
    """Send a test alert through Alertmanager and tell whether it arrived; it has severity none and pages nobody.

    Also looks whether Prometheus runs the rules and knows this Alertmanager. Exit code 9 when a step failed.
    Example: korrigo doctor monitoring --alertmanager http://127.0.0.1:9093
    """
    from korrigo.doctor import alerting

    with _patient(prometheus, alertmanager) as patient:
        monitors = patient.monitors
    if not monitors.alertmanager:
        raise NotFound("NO_ALERTMANAGER", "set KORRIGO_MONITORING__ALERTMANAGER_URL, or give --alertmanager")
    steps = alerting.examine(monitors, listen=listen, wait_seconds=wait)
    is_ok = all(step.is_ok is not False for step in steps)
    signs = {True: "ok  ", False: "BAD ", None: "-   "}
    tell(
        as_json,
        {"arrived": steps[-1].is_ok is True, "healthy": is_ok, "steps": [asdict(step) for step in steps]},
        *(f"{signs[step.is_ok]} {step.name:14} {step.text}" for step in steps),
    )
    if not is_ok:
        raise typer.Exit(EXIT_FOUND_PROBLEMS)


@contextmanager
def _patient(prometheus: str = "", alertmanager: str = "") -> Iterator[Patient]:
    from korrigo.doctor.patient import Patient

    patient = Patient(Home.locate(), prometheus=prometheus, alertmanager=alertmanager)
    try:
        yield patient
    finally:
        patient.close()
