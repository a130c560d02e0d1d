"""Writes alerts.md beside it from the rules files; `--check` only tells whether it is up to date.

Run by hand after a change of the rules (`.venv/bin/python docs/reference/generate_alerts.py`);
tests/contract/test_rules.py runs the check.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "charts" / "korrigo" / "files" / "rules"
PAGE = Path(__file__).with_name("alerts.md")

HEAD = """# Alerts

Generated from charts/korrigo/files/rules by generate_alerts.py; change the rules, not this page.

One Prometheus watches one Korrigo. Every alert carries the labels `severity`, `priority`, `scenario` and `team`, and
the annotations told below. `scenario` is what `korrigo doctor scenario` takes; the runbook NAME is
docs/runbooks/NAME.md. `runbook_url` begins with `https://korrigo.example.org`, `dashboard_url` with
`https://grafana.example.org`: replace them by the addresses where you publish the pages and where your Grafana is.

"""


def _groups() -> list[dict[str, Any]]:
    return [group for path in sorted(RULES.glob("*.yaml")) for group in yaml.safe_load(path.read_text())["groups"]]


def _row(rule: dict[str, Any]) -> str:
    labels, notes = rule["labels"], rule["annotations"]
    runbook = notes["runbook_url"].rsplit("/", 1)[1]
    page = f"[{runbook}](../runbooks/{runbook}.md)"
    kind = (labels["severity"], labels["priority"], labels["scenario"])
    cells = (rule["alert"], notes["summary"], rule["for"], *kind, page)
    return "| " + " | ".join(cells) + " |"


def _details(rule: dict[str, Any]) -> str:
    labels, notes = rule["labels"], rule["annotations"]
    return "\n".join(
        (
            f"### {rule['alert']} ({labels['severity']})",
            "",
            f"{notes['summary']}, for {rule['for']}." if rule["for"] != "0s" else f"{notes['summary']}, at once.",
            "",
            f"- First: {notes['first_response']}",
            f"- Escalate to: {notes['escalate_to']}; after: {notes['escalate_after']}; team: {labels['team']}",
            "",
            "```promql",
            rule["expr"].rstrip(),
            "```",
            "",
        )
    )


def _escalation() -> str:
    table = yaml.safe_load((ROOT / "charts" / "korrigo" / "files" / "escalation.yaml").read_text())
    head = "| priority | escalate after | level after seconds | reminded every |"
    lines = ["## Escalation", "", head, "|---|---|---|---|"]
    for priority, levels in table["levels"].items():
        told = ", ".join(f"N{level}: {seconds}" for level, seconds in levels.items()) or "backlog"
        after, every = table["escalate_after"][priority], table["remind_every"][priority]
        lines.append(f"| {priority} | {after} | {told} | {every} |")
    return "\n".join(lines) + "\n\n"


def render() -> str:
    """Return the page."""
    alerts = [rule for group in _groups() for rule in group["rules"] if "alert" in rule]
    recorded = [rule for group in _groups() for rule in group["rules"] if "record" in rule]
    lines = ["| alert | meaning | for | severity | priority | scenario | runbook |", "|---|---|---|---|---|---|---|"]
    page = HEAD + "\n".join([*lines, *map(_row, alerts)]) + "\n\n" + _escalation()
    page += "## Each alert\n\n" + "\n".join(map(_details, alerts))
    page += "\n## Recorded series\n\nFor dashboards; no alert rests on them.\n\n"
    return page + "".join(f"- `{rule['record']}`\n" for rule in recorded)


def main(arguments: list[str]) -> int:
    """Write the page, or with `--check` return 1 when it is not what the rules say."""
    text = render()
    if "--check" not in arguments:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
        sys.stderr.write("docs/reference/alerts.md is out of date: run docs/reference/generate_alerts.py\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
