"""Custom resource definitions, generated from `kinds`: `python -m korrigo_operator.crds` writes them, --check compares.

Structural schemas as the API server wants them: no references, no alternatives; a field that may be missing is simply
not required. What one model cannot say is said in the rules (CEL) below, each tried on a real API server.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from korrigo_operator import kinds

FOLDER = Path(__file__).resolve().parents[2] / "charts" / "korrigo" / "files" / "crds"
_DROPPED = ("title", "discriminator", "examples")
_HEAD = "# Generated from operator/korrigo_operator/kinds.py by `make crds`.\n"
Schema = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """One kind of object: its names, its models, its rules and its columns (name, type, path[, priority])."""

    kind: str
    plural: str
    short: str
    spec: type[kinds.Model]
    status: type[kinds.Model]
    columns: tuple[tuple[str, str, str] | tuple[str, str, str, int], ...]
    # (rule, message) of the whole object, of its spec, of parts of its spec by their dotted path.
    rules: tuple[tuple[str, str], ...] = ()
    spec_rules: tuple[tuple[str, str], ...] = ()
    part_rules: dict[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    # Whether an object without a spec is one with every default.
    is_spec_optional: bool = False


_AGE = ("Age", "date", ".metadata.creationTimestamp")
KINDS = (
    Kind(
        "GradingPolicy", "gradingpolicies", "gpol", kinds.GradingPolicySpec, kinds.GradingPolicyStatus,
        (
            ("Mode", "string", ".spec.remediation.mode"),
            ("Paused", "boolean", ".spec.paused"),
            ("Stuck", "integer", ".status.stuck"),
            ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status'),
            ("Acting", "string", '.status.conditions[?(@.type=="Acting")].reason'),
            ("Last sweep", "date", ".status.lastSweepTime"),
            _AGE,
        ),
        rules=((f"self.metadata.name == '{kinds.SINGLETON}'", f"the only policy is named {kinds.SINGLETON}"),),
        is_spec_optional=True,
    ),
    Kind(
        "StuckCopy", "stuckcopies", "stuck", kinds.StuckCopySpec, kinds.StuckCopyStatus,
        (
            ("Stage", "string", ".spec.stage"),
            ("Reason", "string", ".spec.reason"),
            ("Since", "date", ".spec.since"),
            ("Phase", "string", ".status.phase"),
            ("Attempts", "integer", ".status.attempts"),
            ("Suggested", "string", ".status.suggestedAction"),
            ("Copies", "integer", ".spec.copies", 1),
            ("Exam", "string", ".spec.exam", 1),
            ("Anonymous id", "string", ".spec.anonymousId", 1),
            ("Error", "string", ".spec.errorReason", 1),
            ("Message", "string", ".status.message", 1),
        ),
        spec_rules=(("has(self.copyId) != has(self.scanId)", "it is about a copy or about a scan"),),
    ),
    Kind(
        "Intervention", "interventions", "iv", kinds.InterventionSpec, kinds.InterventionStatus,
        (
            ("Action", "string", ".spec.action"),
            ("Target", "string", ".spec.target.kind"),
            ("Dry run", "boolean", ".spec.dryRun"),
            ("Phase", "string", ".status.phase"),
            ("Affected", "integer", ".status.affected"),
            ("Refused", "integer", ".status.refused"),
            _AGE,
            ("Id", "string", ".spec.target.id", 1),
            ("Requested by", "string", ".spec.requestedBy", 1),
            ("Message", "string", ".status.message", 1),
        ),
        spec_rules=(
            ("self == oldSelf", "an intervention is never changed: write another one"),
            ("self.reason.trim().size() >= 3", "say why"),
        ),
        part_rules={
            "target": (
                ("(self.kind in ['copy', 'exam', 'scan']) == has(self.id)", "a copy, exam or scan is named by its id"),
                ("(self.kind == 'selected') == has(self.selector)", "selected goes with a selector"),
            )
        },
    ),
    Kind(
        "Incident", "incidents", "inc", kinds.IncidentSpec, kinds.IncidentStatus,
        (
            ("Priority", "string", ".spec.priority"),
            ("Level", "integer", ".status.level"),
            ("Phase", "string", ".status.phase"),
            ("Started", "date", ".spec.startTime"),
            ("Title", "string", ".spec.title"),
            ("Who", "string", ".status.who", 1),
            ("Impact", "string", ".status.impact", 1),
        ),
        part_rules={"groupId": (("self == oldSelf", "an incident stays with its alerts"),)},
    ),
)  # fmt: skip


def definition(kind: Kind) -> dict[str, Any]:
    """Return the CustomResourceDefinition of a kind."""
    spec = _structural(kind.spec)
    _add_rules(spec, kind.spec_rules)
    for path, rules in kind.part_rules.items():
        _add_rules(spec["properties"][path], rules)
    if kind.is_spec_optional:
        spec["default"] = {}
    schema: Schema = {
        "type": "object",
        "description": (kind.spec.__doc__ or "").strip(),
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": _structural(kind.status),
        },
        "required": ["spec"],
    }
    _add_rules(schema, kind.rules)
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{kinds.GROUP}"},
        "spec": {
            "group": kinds.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.kind, "listKind": f"{kind.kind}List", "plural": kind.plural,
                "singular": kind.kind.lower(), "shortNames": [kind.short], "categories": ["korrigo"],
            },
            "versions": [
                {
                    "name": kinds.VERSION, "served": True, "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [_column(*column) for column in kind.columns],
                }
            ],
        },
    }  # fmt: skip


def _column(name: str, type_: str, path: str, priority: int = 0) -> Schema:
    return {"name": name, "type": type_, "jsonPath": path, **({"priority": priority} if priority else {})}


def _add_rules(schema: Schema, rules: tuple[tuple[str, str], ...]) -> None:
    if rules:
        schema["x-kubernetes-validations"] = [{"rule": rule, "message": message} for rule, message in rules]


def _structural(model: type[kinds.Model]) -> Schema:
    whole = model.model_json_schema(by_alias=True)
    plain: Schema = _plain(whole, whole.get("$defs", {}))
    return plain


def _plain(node: Any, definitions: Schema) -> Any:
    """Return a schema without references, alternatives and what the API server does not know."""
    if isinstance(node, list):
        return [_plain(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    node = dict(node)
    if "$ref" in node:
        node = definitions[node.pop("$ref").rsplit("/", 1)[-1]] | node
    if "anyOf" in node:  # something or nothing: nothing is told by leaving it out
        (only,) = [option for option in node.pop("anyOf") if option.get("type") != "null"]
        node = _plain(only, definitions) | node
        node.pop("default", None)
    kept = {key: value for key, value in node.items() if key not in (*_DROPPED, "$defs", "properties")}
    plain = {key: value if key in ("default", "enum") else _plain(value, definitions) for key, value in kept.items()}
    if "properties" in node:
        required = node.get("required", ())
        plain["properties"] = {
            key: _property(value, definitions, is_required=key in required) for key, value in node["properties"].items()
        }
    if "description" in plain:
        plain["description"] = " ".join(plain["description"].split())
    return plain


def _property(node: Schema, definitions: Schema, *, is_required: bool) -> Schema:
    plain: Schema = _plain(node, definitions)
    if plain["type"] == "object" and not is_required and "anyOf" not in node:
        plain["default"] = {}  # its own fields have defaults, which are filled in only where it is
    return plain


def generated() -> dict[Path, str]:
    """Produce every file's text."""
    return {
        FOLDER / f"{kind.plural}.yaml": _HEAD + yaml.safe_dump(definition(kind), sort_keys=False, width=120)
        for kind in KINDS
    }


def main(arguments: list[str]) -> int:
    """Write the files, or with --check say which are out of date."""
    texts = generated()
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text() != text]
    if "--check" in arguments:
        for path in stale:
            sys.stderr.write(f"{path.relative_to(FOLDER.parents[3])} is out of date: run `make crds`\n")
        return 1 if stale else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path in stale:
        path.write_text(texts[path])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
