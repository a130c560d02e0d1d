"""Writes charts/korrigo/files/dashboards/*.json for Grafana; `--check` only tells whether they are up to date.

Run by `make dashboards` and checked by `make drift`. One dashboard shows the whole product (the playbook's eight
panels first); each scenario has its own, `korrigo-SCENARIO`, which the alerts name in `dashboard_url`. A panel is
declared once below and shown wherever it helps. Recorded series (files/rules/korrigo-recording.yaml) are used where
they exist, so that a picture of a month costs what a picture of an hour does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from grafana_foundation_sdk.builders import common, stat, table, text, timeseries
from grafana_foundation_sdk.builders import dashboard as grafana
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    LegendDisplayMode,
    LegendPlacement,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    Dashboard,
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

FOLDER = Path(__file__).with_name("korrigo") / "files" / "dashboards"
DATASOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
GREEN, RED = "green", "red"


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture: (query, legend) pairs, the unit as Grafana names it, and for a figure the value it turns red at."""

    title: str
    meaning: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "lines"
    red_from: float | None = None
    red_below: float | None = None


def _quantiles(metric: str, label: str, recorded: str) -> tuple[tuple[str, str], ...]:
    """Ask for the middle, the 95th and the 99th percentile by a label; the 95th is recorded."""
    of = f"sum by (le, {label}) (rate({metric}_bucket[5m]))"
    return (
        (f"histogram_quantile(0.50, {of})", f"p50 {{{{{label}}}}}"),
        (recorded, f"p95 {{{{{label}}}}}"),
        (f"histogram_quantile(0.99, {of})", f"p99 {{{{{label}}}}}"),
    )


_FINALIZED = 'sum(increase(grading_finalize_duration_seconds_count{status="success"}[1h]))'
_ETA = f'sum(korrigo:copies:by_status{{status!="GRADED"}}) / ({_FINALIZED} > 0) * 3600'
_SLOW = (
    "topk(10, histogram_quantile(0.95, sum by (le, method, path) "
    '(rate(http_request_duration_seconds_bucket{path!~".*/events|.*/stream|/metrics"}[5m]))))'
)
_FIRING = 'sum by (alertname, priority, severity, scenario) (ALERTS{alertstate="firing", alertname!="Watchdog"})'
_FORECAST = (
    "min by (volume) (predict_linear(grading_storage_available_bytes[6h], 604800) / grading_storage_size_bytes)"
)
_FREE = "min by (volume) (grading_storage_available_bytes)"

PANELS = {
    # The playbook's eight.
    "import_duration": Panel(
        "Import duration by number of pages", "From upload to copy, of imports that ended in the last 5 minutes.", "s",
        _quantiles("grading_import_duration_seconds", "pages_bucket",
                   "pages_bucket:grading_import_duration_seconds:p95_rate5m"),
    ),
    "finalize_duration": Panel(
        "Finalise duration by attempt", "From the request to the final PDF, of attempts of the last 5 minutes.", "s",
        _quantiles("grading_finalize_duration_seconds", "retry_attempt",
                   "retry_attempt:grading_finalize_duration_seconds:p95_rate5m"),
    ),
    "ocr_errors": Panel(
        "Errors while reading scans, per minute", "OCRErrorsHigh fires above 5 of all kinds together.", "short",
        (("sum by (error_type) (increase(grading_ocr_errors_total[5m])) / 5", "{{error_type}}"),),
    ),
    "lock_conflicts": Panel(
        "Lock conflicts, per minute", "Requests refused because of a lock; two people on one copy: already_locked.",
        "short", (("sum by (conflict_type) (increase(grading_lock_conflicts_total[5m])) / 5", "{{conflict_type}}"),),
    ),
    "copies": Panel(
        "Copies by status", "Where the work is.", "short", (("korrigo:copies:by_status", "{{status}}"),),
    ),
    "queue": Panel(
        "Queue length", "Messages that wait (ready) and that a worker holds (unacked, RabbitMQ only).", "short",
        (("korrigo:queue_messages:by_queue_state", "{{queue}} {{state}}"),),
    ),
    "connections": Panel(
        "Database connections", "Busy ones are all but idle; the line is what the server allows.", "short",
        (("korrigo:db_connections:by_state", "{{state}}"), ("max(grading_db_connections_max)", "allowed")),
    ),
    "latency": Panel(
        "Request latency", "95th and 99th percentile by service; streams do not count.", "s",
        (("job:http_request_duration_seconds:p95_rate5m", "p95 {{job}}"),
         ("job:http_request_duration_seconds:p99_rate5m", "p99 {{job}}")),
    ),
    # What else operations.md names.
    "stuck": Panel(
        "Stuck copies by reason", "What the sweeper did not heal within a minute; `korrigo stuck` lists them.", "short",
        (("korrigo:stuck_copies:by_stage_reason", "{{stage}} {{reason}}"),),
    ),
    "workers": Panel(
        "Workers by queue", "Workers that gave a sign within 15 s.", "short",
        (("korrigo:workers_ready:by_queue", "{{queue}}"),),
    ),
    "budget": Panel(
        "Error budget left of 30 days", "1 = untouched, 0 = spent: 99.5 % of the requests of 30 days should succeed.",
        "percentunit", (("korrigo:error_budget:remaining_ratio30d", "left"),), "figure", red_below=0,
    ),
    "burn": Panel(
        "Error budget burn rate", "1 = the budget lasts exactly 30 days; 14.4 over an hour pages.", "short",
        tuple((f"korrigo:http_request_errors:ratio_rate{span} / 0.005", span) for span in ("1h", "6h", "1d", "3d")),
    ),
    "audit_gaps": Panel(
        "Missing audit events by action", "Events that a room told and that the audit trail does not hold.", "short",
        (("korrigo:audit_missing_events:by_action", "{{action}}"),),
    ),
    "disk": Panel(
        "Free room by volume", "Now, and in 7 days at the pace of the last 6 hours.", "percentunit",
        (("korrigo:storage_available:ratio", "{{volume}}"), (_FORECAST, "{{volume}} in 7 days")),
    ),
    "disk_full": Panel(
        "Full in", "At the pace of the last 6 hours; nothing is shown for a volume that does not fill up.", "s",
        ((f"{_FREE} / (max by (volume) (-deriv(grading_storage_available_bytes[6h])) > 0)", "{{volume}}"),),
        "figure", red_below=172800,
    ),
    "interventions": Panel(
        "Interventions and operator actions, per hour", "What people and the operator did by hand, by result.", "short",
        (("sum by (result) (increase(grading_interventions_total[1h]))", "{{result}}"),
         ("sum by (action) (increase(grading_operator_actions_total[1h]))", "{{action}}")),
    ),
    "eta": Panel(
        "Marking ends in", "Copies that are not graded, at the pace of the last hour; nothing while nobody finalises.",
        "s", ((_ETA, "all exams"),), "figure",
    ),
    # Further evidence for the scenarios.
    "pace": Panel(
        "Finalised per hour", "Final PDFs made in the last hour.", "short", ((_FINALIZED, "finalised"),),
    ),
    "alerts": Panel(
        "Firing alerts", "By priority; each name is a page of the runbooks.", "short",
        ((_FIRING, ""),), "table",
    ),
    "oldest": Panel(
        "Longest unchanged copy by status", "Time since the last change of the copy that waits longest.", "s",
        (("korrigo:oldest_copy_age_seconds:by_status", "{{status}}"),),
    ),
    "jobs": Panel(
        "Open jobs", "By kind and state; quarantined ones wait for a person.", "short",
        (('korrigo:jobs:by_kind_state{state!~"DONE|CANCELLED"}', "{{kind}} {{state}}"),),
    ),
    "queue_age": Panel(
        "Oldest due job by queue", "How long the first of each queue has waited.", "s",
        (("korrigo:queue_oldest_seconds:by_queue", "{{queue}}"),),
    ),
    "exhausted": Panel(
        "Copies without a further attempt", "Each waits for a person.", "short",
        (("max(grading_copies_retries_exhausted)", "copies"),), "figure", red_from=1,
    ),
    "failures": Panel(
        "Share of failed attempts to finalise", "Over 15 minutes; FinalizationFailureHigh fires above 10 %.",
        "percentunit", (("korrigo:finalize_failures:ratio_increase15m", "failed"),),
    ),
    "locks": Panel(
        "Locks by state", "Stale: the holder is silent for 10 minutes; expired ones are swept within seconds.", "short",
        (("korrigo:locks:by_state", "{{state}}"),),
    ),
    "routes": Panel(
        "Slowest routes (95th percentile)", "The ten slowest of the last 5 minutes.", "s",
        ((_SLOW, "{{method}} {{path}}"),),
    ),
    "requests": Panel(
        "Requests per second", "By service, without probes and scrapes.", "reqps",
        (("job:http_requests:rate5m", "{{job}}"), ("korrigo:http_requests:rate5m", "all")),
    ),
    "errors": Panel(
        "Failed requests per second", "Answers of 5xx.", "reqps",
        (("job:http_request_errors:rate5m", "{{job}}"), ("korrigo:http_request_errors:rate5m", "all")),
    ),
    "error_share": Panel(
        "Share of failed requests", "ErrorRateHigh fires above 10 % of the whole product.", "percentunit",
        (("job:http_request_errors:ratio_rate5m", "{{job}}"),),
    ),
    "failing_routes": Panel(
        "Routes that fail", "Answers of 5xx per minute, the ten worst.", "short",
        (('topk(10, sum by (method, path, status) (increase(http_requests_total{status=~"5.."}[5m])) / 5 > 0)',
          "{{method}} {{path}} {{status}}"),),
    ),
    "blocked": Panel(
        "Sessions that wait for a lock", "Of the database; `korrigo doctor db` shows who blocks whom.", "short",
        (("max(grading_db_blocked_queries)", "waiting"),),
    ),
    "oldest_query": Panel(
        "Oldest running statement", "Of the rooms; DatabaseSlowQueries fires above 2 s.", "s",
        (("max(grading_db_oldest_query_seconds)", "oldest"),),
    ),
    "memory": Panel(
        "Memory that is left", "Of the machine with the least; MemoryPressure fires below 500 MB.", "bytes",
        (("min(grading_memory_available_bytes)", "available"),),
    ),
    "up": Panel(
        "Database, broker, targets", "1 = reached by somebody; a target at 0 is not scraped.", "short",
        (("max(grading_db_up)", "database"), ("max(grading_broker_up)", "broker"), ("min by (job) (up)", "{{job}}")),
        "figure", red_below=1,
    ),
    "chain": Panel(
        "Audit trail verifies", "0 = an event was changed or removed after it was written.", "short",
        (("min(grading_audit_chain_valid)", "valid"),), "figure", red_below=1,
    ),
    "outbox": Panel(
        "Oldest event on its way", "Age of the oldest event that a room has not told the others yet.", "s",
        (("max by (job) (grading_audit_outbox_oldest_seconds)", "{{job}}"),),
    ),
    "uploads": Panel(
        "Temporary uploads", "TempUploadsLarge fires above 1 GiB.", "bytes",
        (("max(grading_temp_upload_bytes)", "uploads"),),
    ),
    "store_errors": Panel(
        "Object store errors, per minute", "Operations that the store did not do.", "short",
        (("sum by (operation) (increase(grading_object_store_errors_total[5m])) / 5", "{{operation}}"),),
    ),
    "backup": Panel(
        "Age of the last good backup", "BackupTooOld fires after 26 hours.", "s",
        (("time() - max(grading_backup_last_success_timestamp_seconds)", "age"),), "figure", red_from=93600,
    ),
    "sweep": Panel(
        "Age of the last good sweep", "SweeperStale fires after 5 minutes.", "s",
        (("time() - max by (job) (grading_sweep_last_success_timestamp_seconds)", "{{job}}"),),
    ),
    "logins": Panel(
        "Refused logins, per minute", "LoginFailuresHigh fires above 50 in 10 minutes.", "short",
        (("sum(increase(grading_login_failures_total[5m])) / 5", "refused"),),
    ),
    "operator": Panel(
        "Operator", "Who acts is 1 (0: none of them); open: acts did not help lately, so it waits.", "short",
        (("sum(korrigo_operator_leading)", "acts"), ("max(korrigo_operator_circuit_open)", "circuit open")),
    ),
    "operator_sweep": Panel(
        "Sweeps of the operator", "How long they take, and how long ago the last came to its end.", "s",
        (("histogram_quantile(0.95, sum by (le, result) (rate(korrigo_operator_sweep_duration_seconds_bucket[5m])))",
          "p95 {{result}}"),
         ("time() - max(korrigo_operator_last_sweep_timestamp_seconds > 0)", "since the last")),
    ),
    "operator_objects": Panel(
        "StuckCopy objects by phase", "NeedsPerson waits for a person; `kubectl get stuck` lists them.", "short",
        (("max by (phase) (korrigo_operator_stuck_copies)", "{{phase}}"),),
    ),
    "operator_acts": Panel(
        "Acts of the operator, per hour", "By action and result; failed ones open the circuit.", "short",
        (("sum by (action, result) (increase(korrigo_operator_acts_total[1h])) > 0", "{{action}} {{result}}"),),
    ),
    "build": Panel(
        "What runs", "Processes by version.", "short",
        (("count by (version, python) (korrigo_build_info)", "{{version}} (Python {{python}})"),), "figure",
    ),
}  # fmt: skip

PLAYBOOK = (
    "import_duration", "finalize_duration", "ocr_errors", "lock_conflicts", "copies", "queue", "connections", "latency",
)  # fmt: skip
MORE = (
    "eta", "budget", "disk_full", "up", "stuck", "workers", "burn", "audit_gaps", "disk", "interventions", "pace",
    "build",
)  # fmt: skip
# On a cluster; `korrigo up` heals by the same policies without an operator.
OPERATOR = ("operator", "operator_sweep", "operator_objects", "operator_acts")
SCENARIOS = {
    "import": ("stuck", "copies", "import_duration", "ocr_errors", "queue", "queue_age", "workers", "jobs", "oldest",
               "uploads", "disk"),
    "finalization": ("exhausted", "eta", "stuck", "failures", "finalize_duration", "pace", "queue", "workers", "jobs",
                     "memory", "store_errors"),
    "locks": ("lock_conflicts", "locks", "stuck", "copies", "pace", "sweep"),
    "latency": ("latency", "routes", "requests", "oldest_query", "blocked", "connections", "queue", "queue_age",
                "memory", "workers"),
    "audit": ("chain", "audit_gaps", "outbox", "queue", "workers", "interventions"),
    "database": ("up", "backup", "connections", "blocked", "oldest_query", "latency", "errors", "disk"),
    "broker": ("up", "queue", "queue_age", "workers", "outbox", "jobs", "stuck"),
    "storage": ("disk_full", "disk", "uploads", "store_errors", "backup"),
    "monitoring": ("up", "build", "sweep", "interventions", "workers", "requests"),
    "web": ("budget", "up", "requests", "errors", "error_share", "failing_routes", "burn", "latency", "logins"),
}  # fmt: skip


def _queries(panel: Panel) -> list[Dataquery]:
    queries = []
    for at, (expression, legend) in enumerate(panel.queries):
        query = Dataquery().expr(expression).legend_format(legend).ref_id(chr(ord("A") + at)).datasource(DATASOURCE)
        if panel.kind == "lines":
            query.range()
        else:
            query.instant()
        if panel.kind == "table":
            query.format(PromQueryFormat.TABLE)
        queries.append(query)
    return queries


def _lines(panel: Panel) -> timeseries.Panel:
    legend = common.VizLegendOptions().display_mode(LegendDisplayMode.TABLE).placement(LegendPlacement.BOTTOM)
    legend.show_legend(True).calcs(["lastNotNull", "max"])
    tooltip = common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI)
    return timeseries.Panel().legend(legend).tooltip(tooltip).min(0).fill_opacity(10).height(8).span(12)


def _figure(panel: Panel) -> stat.Panel:
    if panel.red_below is not None:
        steps = [Threshold(value=None, color=RED), Threshold(value=panel.red_below, color=GREEN)]
    elif panel.red_from is not None:
        steps = [Threshold(value=None, color=GREEN), Threshold(value=panel.red_from, color=RED)]
    else:
        steps = [Threshold(value=None, color=GREEN)]
    thresholds = grafana.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)
    return stat.Panel().thresholds(thresholds).color_mode(BigValueColorMode.VALUE).height(4).span(6).no_value("-")


def _panel(key: str) -> timeseries.Panel | stat.Panel | table.Panel:
    panel = PANELS[key]
    shown: timeseries.Panel | stat.Panel | table.Panel
    if panel.kind == "table":
        shown = table.Panel().height(6).span(24)
    elif panel.kind == "figure":
        shown = _figure(panel)
    else:
        shown = _lines(panel)
    shown.title(panel.title).description(panel.meaning).unit(panel.unit).datasource(DATASOURCE)
    for query in _queries(panel):
        shown.with_target(query)
    return shown


def _board(uid: str, title: str, meaning: str) -> grafana.Dashboard:
    links = grafana.DashboardLink("Korrigo").type(DashboardLinkType.DASHBOARDS).tags(["korrigo"]).as_dropdown(True)
    return (
        grafana.Dashboard(title)
        .uid(uid)
        .description(meaning)
        .tags(["korrigo"])
        .timezone("browser")
        .refresh("30s")
        .time("now-3h", "now")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .readonly()
        .with_variable(grafana.DatasourceVariable("datasource").type("prometheus").label("Prometheus"))
        .link(links.include_vars(True).keep_time(True))
    )


def _add(board: grafana.Dashboard, keys: Sequence[str]) -> None:
    # Figures first, side by side; the builder fills each line from the left.
    for key in sorted(keys, key=lambda key: PANELS[key].kind != "figure"):
        board.with_panel(_panel(key))


def overview() -> grafana.Dashboard:
    """Build the dashboard of the whole product."""
    board = _board("korrigo-overview", "Korrigo", "Imports, marking, final PDFs and what they rest on.")
    board.with_panel(_panel("alerts"))
    board.with_row(grafana.Row("Grading workflow"))
    _add(board, PLAYBOOK)
    board.with_row(grafana.Row("Health"))
    _add(board, MORE)
    board.with_row(grafana.Row("Operator (on a cluster)"))
    _add(board, OPERATOR)
    return board


def scenario(name: str) -> grafana.Dashboard:
    """Build the dashboard that the alerts of a scenario lead to."""
    board = _board(f"korrigo-{name}", f"Korrigo: {name}", f"Evidence for `korrigo doctor scenario {name}`.")
    first = f"First: `korrigo doctor scenario {name}` on the machine; it ranks the causes and names the remedies."
    board.with_panel(text.Panel().title("").content(first).height(2).span(24))
    board.with_panel(_alerts_of(name))
    _add(board, SCENARIOS[name])
    return board


def _alerts_of(name: str) -> table.Panel:
    panel = PANELS["alerts"]
    ((expression, _),) = panel.queries
    only = expression.replace('{alertstate="firing"', f'{{alertstate="firing", scenario="{name}"')
    query = Dataquery().expr(only).ref_id("A").datasource(DATASOURCE).instant().format(PromQueryFormat.TABLE)
    shown = table.Panel().title(panel.title).description(panel.meaning).datasource(DATASOURCE).height(5).span(24)
    return shown.with_target(query)


def generated() -> dict[Path, str]:
    """Produce the text of every file."""
    boards = {"overview": overview(), **{name: scenario(name) for name in SCENARIOS}}
    return {FOLDER / f"korrigo-{name}.json": _text(board.build()) for name, board in boards.items()}


def _text(board: Dashboard) -> str:
    # Numbered here, so that a link to one panel lasts until panels before it change.
    for number, panel in enumerate(board.panels or (), 1):
        panel.id_val = number
    return json.dumps(board, cls=JSONEncoder, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    """Write the files, or with --check say which are out of date."""
    texts = generated()
    stale = [path for path, content in texts.items() if not path.exists() or path.read_text() != content]
    extra = sorted(set(FOLDER.glob("*")) - set(texts))
    if "--check" in arguments:
        for path in (*stale, *extra):
            sys.stderr.write(f"{path.name} is out of date: run `make dashboards`\n")
        return 1 if stale or extra else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path in extra:
        path.unlink()
    for path in stale:
        path.write_text(texts[path])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
