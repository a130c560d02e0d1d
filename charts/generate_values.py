"""Generate what says the same as values.yaml in other words: values.schema.json and README.md of the chart.

`# -- ` above a key documents it, `# @schema {…}` adds to what its default says about its type. A map with keys takes no
others. Run by `make chart`; `make drift` runs it with --check.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parent / "korrigo"
_KEY = re.compile(r"^(?P<indent> *)(?P<key>[A-Za-z][A-Za-z0-9_.-]*):(?P<rest>.*)$")
Json = dict[str, Any]

POD: Json = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "extraEnv": {"type": "array", "items": {"type": "object", "required": ["name"]}},
        "priorityClassName": {"type": "string"},
        "nodeSelector": {"type": "object", "additionalProperties": {"type": "string"}},
        "tolerations": {"type": "array", "items": {"type": "object"}},
        "affinity": {"type": "object"},
        "topologySpread": {"type": "array", "items": {"type": "object"}},
    },
}
_QUANTITIES: Json = {
    "type": "object",
    "minProperties": 1,
    "additionalProperties": {"type": ["string", "number"]},
    "propertyNames": {"enum": ["cpu", "memory", "ephemeral-storage"]},
}
DEFINITIONS: Json = {
    "pod": POD,
    "resources": {
        "type": "object",
        "additionalProperties": False,
        "required": ["requests", "limits"],
        "properties": {"requests": _QUANTITIES, "limits": _QUANTITIES},
    },
    "alert": {
        "type": "object",
        "additionalProperties": False,
        "minProperties": 1,
        "properties": {
            "enabled": {"type": "boolean"},
            "threshold": {"type": "number"},
            "replace": {"type": "object", "additionalProperties": {"type": "string"}},
            "for": {"type": "string", "pattern": "^[0-9]+(s|m|h|d)$"},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
        },
    },
}


@dataclass
class Value:
    """One key of values.yaml: its path, default, text and what is said about its shape."""

    path: tuple[str, ...]
    default: Any
    text: str
    shape: Json
    is_documented: bool = True
    children: list[Value] = field(default_factory=list)


def read(text: str) -> list[Value]:
    """Return every documented key, in order; raises ValueError for one that is not documented."""
    defaults = yaml.safe_load(text)
    found: list[Value] = []
    comment: list[str] = []
    stack: list[tuple[int, str]] = []
    hidden = -1  # below a documented map, such as resources, nothing is documented again
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            comment.append(line.strip())
            continue
        hit = _KEY.match(line)
        if hit is None:
            comment = []
            continue
        indent = len(hit["indent"])
        if hidden >= 0 and indent > hidden:
            continue
        hidden = -1
        stack = [*(entry for entry in stack if entry[0] < indent), (indent, hit["key"])]
        path = tuple(key for _, key in stack)
        value = _value(path, defaults, comment)
        comment = []
        if value.is_documented:
            hidden = indent
            found.append(value)
        elif not isinstance(value.default, dict) or not value.default:
            raise ValueError(f"{'.'.join(path)} is not documented")
    return found


def _value(path: tuple[str, ...], defaults: Json, comment: list[str]) -> Value:
    default: Any = defaults
    for key in path:
        default = default[key]
    lines: list[str] = []
    shape: Json = {}
    is_documented = False
    for line in comment:
        body = line.removeprefix("#").strip()
        if body.startswith("@schema "):
            shape |= json.loads(body.removeprefix("@schema "))
        elif body.startswith("-- "):
            is_documented, lines = True, [body.removeprefix("-- ")]
        elif is_documented:
            lines.append(body)
    return Value(path, default, " ".join(lines), shape, is_documented)


def schema(values: list[Value]) -> Json:
    """Build the JSON schema of the values."""
    root: Json = _closed()
    # Helm gives every dependency of a parent chart this map.
    root["properties"]["global"] = {"type": "object"}
    for value in values:
        at = root
        for key in value.path[:-1]:
            at = at["properties"].setdefault(key, _closed())
        at["properties"][value.path[-1]] = _shape(value)
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of charts/korrigo",
        **root,
        "definitions": DEFINITIONS,
    }


def _closed() -> Json:
    return {"type": "object", "additionalProperties": False, "properties": {}}


def _shape(value: Value) -> Json:
    if "$ref" in value.shape:
        # beside a $ref draft 7 ignores everything
        return {"allOf": [{"$ref": value.shape["$ref"]}], "description": value.text}
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    found: Json = {"type": kinds[type(value.default)], "description": value.text, **value.shape}
    if found["type"] == "object" and not {"additionalProperties", "properties"} & set(found):
        raise ValueError(f"{'.'.join(value.path)}: say with @schema what the map may hold")
    return found


_HEAD = """# korrigo

Helm chart of Korrigo: the four rooms and their workers, the operator, routes, migrations, monitoring, backups.
Generated from `values.yaml`; edit that file and run `make chart`.

```sh
helm install korrigo charts/korrigo --namespace korrigo --create-namespace --values my-values.yaml
helm test korrigo --namespace korrigo
```

What has to be there before (PostgreSQL, RabbitMQ, an S3 bucket, a Gateway), how to upgrade, go back, scale and recover:
[docs/guides/cluster.md](../../docs/guides/cluster.md). How large: [docs/guides/sizing.md](../../docs/guides/sizing.md).
"""

_SECRETS = """
## Secrets

| Secret | Keys | Who brings it |
|---|---|---|
| `korrigo-postgresql` | `url`, `migrate-url` | you |
| `korrigo-rabbitmq` | `url`, `management-url` | you |
| `korrigo-s3` | `access-key-id`, `secret-access-key` | you, unless the pods have a cloud identity |
| `korrigo-rpc` | `secret` | made when it does not exist |
| `korrigo-auth` | `signing-key.pem`, `public-keys.pem` | made when it does not exist |
| `korrigo-admin` | `password` | made when it does not exist |
| `korrigo-alertmanager` | `token` | made when it does not exist |

Names and keys are values (`existingSecret`, `…Key`). What the chart made survives upgrades and `helm uninstall`. Tools
that render without a cluster (Argo CD, `helm template`) cannot see that a secret exists: make all of them yourself
there.

## Values
"""


def readme(values: list[Value]) -> str:
    """Write README.md: one table per component."""
    parts = [_HEAD, _SECRETS]
    last = ""
    for value in values:
        if value.path[0] != last:
            last = value.path[0]
            parts.append(f"\n### {last}\n\n| Value | Default | |\n|---|---|---|\n")
        default = json.dumps(value.default, ensure_ascii=False)
        cells = (".".join(value.path), default, value.text)
        name, shown, text = (cell.replace("|", "\\|") for cell in cells)
        parts.append(f"| `{name}` | `{shown}` | {text} |\n")
    return "".join(parts)


def main(arguments: list[str]) -> int:
    """Write both files, or with --check say which of them is out of date."""
    values = read((CHART / "values.yaml").read_text())
    wanted = {
        "values.schema.json": json.dumps(schema(values), indent=2, ensure_ascii=False) + "\n",
        "README.md": readme(values),
    }
    stale = [name for name, text in wanted.items() if not _is(CHART / name, text)]
    if "--check" in arguments:
        for name in stale:
            sys.stderr.write(f"charts/korrigo/{name} is out of date: make chart\n")
        return 1 if stale else 0
    for name in stale:
        (CHART / name).write_text(wanted[name])
    return 0


def _is(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
