"""Those who watch: Prometheus, Alertmanager, and the sweeper that heals."""

from __future__ import annotations

from korrigo.doctor.causes import LIKELY, SEEN, Blind, Cause, Found, Remedy, span
from korrigo.doctor.monitors import problem
from korrigo.doctor.patient import Patient
from korrigo.rooms import NAMES

# SweeperStale pages at 300 s; it comes round every 10 s, so a minute is long already.
_SWEEP_SECONDS = 60
# The Watchdog comes every 5 minutes (deploy/alertmanager.yml); three silences are no accident.
_WATCHDOG_SECONDS = 900
_JOBS = "korrigo|ingest|grading|render|audit|operator"


def _prometheus_down(patient: Patient) -> Found | None:
    url = patient.monitors.prometheus
    if not url:
        raise Blind("no KORRIGO_MONITORING__PROMETHEUS_URL")
    text = problem(url, "/-/ready")
    if text:
        return Found(SEEN + 0.08, (text,), {"url": url})
    evidence = []
    down = [labels for labels, value in patient.monitors.query(f'up{{job=~"{_JOBS}"}}') if value == 0]
    if not patient.monitors.query(f'up{{job=~"{_JOBS}"}}'):
        evidence.append(f"{url} has no target of job {_JOBS.replace('|', ', ')}")
    evidence += [f"it cannot read {labels.get('job')} at {labels.get('instance')}" for labels in down]
    if not patient.monitors.query('ALERTS{alertname="Watchdog"}'):
        evidence.append("its rules do not run: Watchdog does not fire")
    return Found(SEEN - 0.1, tuple(evidence), {"url": url}) if evidence else None


def _alertmanager_down(patient: Patient) -> Found | None:
    url = patient.monitors.alertmanager
    if not url:
        raise Blind("no KORRIGO_MONITORING__ALERTMANAGER_URL")
    text = problem(url, "/-/ready")
    return Found(SEEN + 0.09, (text,), {"url": url}) if text else None


_HEARD = """
SELECT extract(epoch FROM clock_timestamp() - beat_at)::float8 AS silent FROM heartbeats WHERE name = 'watchdog'
"""


def _alerting_silent(patient: Patient) -> Found | None:
    """Be the dead man's switch of an installation that was watched once; of the others nothing is known."""
    rows = patient.rows(_HEARD, room="grading")
    if not rows or rows[0]["silent"] <= _WATCHDOG_SECONDS:
        return None
    text = f"the Watchdog, which comes every 5 min, was heard last {span(rows[0]['silent'])} ago"
    return Found(LIKELY, (text,))


_SWEPT = """
SELECT extract(epoch FROM clock_timestamp() - (SELECT beat_at FROM heartbeats WHERE name = 'swept'))::float8 AS swept,
       extract(epoch FROM clock_timestamp() - (SELECT beat_at FROM heartbeats WHERE name = 'sweeper'))::float8 AS came
"""


def _sweeper_stale(patient: Patient) -> Found | None:
    found = {room: patient.row(_SWEPT, room=room) for room in NAMES}
    stale = {room: row for room, row in found.items() if row["swept"] is None or row["swept"] > _SWEEP_SECONDS}
    is_child_ill = bool(patient.is_up) and "sweeper" in patient.children and not patient.is_child_well("sweeper")
    if not stale and not is_child_ill:
        return None
    evidence = []
    for room, row in stale.items():
        last = "never" if row["swept"] is None else f"{span(row['swept'])} ago"
        comes = row["came"] is not None and row["came"] <= _SWEEP_SECONDS
        evidence.append(f"{room}: last swept well {last}" + ("; it comes round and fails" if comes else ""))
    if is_child_ill:
        evidence.append("the sweeper process of `korrigo up` is dead or stopped")
    values = {"room": next(iter(stale), "grading"), "pid": str(patient.children.get("sweeper", "PID"))}
    return Found(SEEN + 0.04, tuple(evidence), values)


CAUSES = (
    Cause(
        "alertmanager-down",
        "Alertmanager does not answer: alerts reach nobody",
        ("monitoring",),
        _alertmanager_down,
        (
            Remedy("systemctl restart prometheus-alertmanager", "Start it again.",
                   "amtool check-config /etc/prometheus/alertmanager.yml"),
            Remedy("korrigo doctor monitoring", "Afterwards: send a test alert, which pages nobody."),
        ),
        "watchdog",
    ),
    Cause(
        "prometheus-down",
        "Prometheus does not answer, or does not see the product",
        ("monitoring",),
        _prometheus_down,
        (
            Remedy("systemctl restart prometheus", "Start it again.",
                   "promtool check config /etc/prometheus/prometheus.yml"),
            Remedy("korrigo doctor monitoring", "Afterwards: send a test alert, which pages nobody."),
        ),
        "watchdog",
    ),
    Cause(
        "alerting-silent",
        "Nothing comes from the alerting any more",
        ("monitoring",),
        _alerting_silent,
        (
            Remedy("korrigo doctor monitoring", "See where the way of an alert ends; its test alert pages nobody."),
            Remedy("systemctl restart prometheus prometheus-alertmanager", "Start both again.",
                   "systemctl status prometheus prometheus-alertmanager"),
        ),
        "watchdog",
    ),
    Cause(
        "sweeper-stale",
        "A sweeper does not come round: nothing heals by itself",
        ("monitoring", "lock-conflicts", "import-stuck", "finalization-failing"),
        _sweeper_stale,
        (
            Remedy("kill -KILL {pid}", "End a sweeper that hangs; `korrigo up` starts another at once.",
                   "ps -o pid,stat,etime,args -p {pid}", "embedded"),
            Remedy("korrigo run {room} --part sweeper", "Start a sweeper; two beside each other are safe.",
                   "korrigo doctor scenario monitoring", "production"),
        ),
        "sweeper-stale",
    ),
)  # fmt: skip
