"""The chart as tests see it: rendered by the real helm, one list of objects per scenario, each rendered once."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parents[2] / "charts" / "korrigo"
SCENARIOS = ("default", *sorted(path.name.removesuffix("-values.yaml") for path in CHART.glob("ci/*-values.yaml")))
Json = dict[str, Any]


class Refused(Exception):
    """Helm did not render; the message is what it said."""


@cache
def helm() -> Path:
    """Return the helm of the test cluster; raises MissingTool without Go."""
    from cluster.binaries import ensure_binaries

    return ensure_binaries() / "helm"


def run(*words: str, given: str | None = None) -> str:
    """Run helm; raises Refused with its complaint."""
    done = subprocess.run([str(helm()), *words], input=given, capture_output=True, text=True, timeout=240, check=False)
    if done.returncode != 0:
        raise Refused(done.stderr + done.stdout)
    return done.stdout


def render(values: Mapping[str, Any] | None = None, *, scenario: str = "default", words: tuple[str, ...] = ()) -> str:
    """Render release korrigo in namespace korrigo with a scenario's values and, over them, these."""
    argv = ["template", "korrigo", str(CHART), "--namespace", "korrigo", *words]
    if scenario != "default":
        argv += ["--values", str(CHART / "ci" / f"{scenario}-values.yaml")]
    return run(*argv, "--values", "-", given=yaml.safe_dump(dict(values or {})))


def objects(text: str) -> list[Json]:
    """Parse what helm wrote."""
    return [found for found in yaml.load_all(text, Loader=yaml.CSafeLoader) if found]  # ten times as fast


@cache
def rendered(scenario: str) -> tuple[Json, ...]:
    """Return a scenario's objects."""
    return tuple(objects(render(scenario=scenario)))


def of_kind(found: tuple[Json, ...] | list[Json], *kinds: str) -> list[Json]:
    """Choose objects by kind."""
    return [one for one in found if one["kind"] in kinds]


def name_of(found: Json) -> str:
    """Name an object as kubectl does, for messages."""
    return f"{found['kind']}/{found['metadata']['name']}"


def pods(found: tuple[Json, ...] | list[Json]) -> Iterator[tuple[str, Json, Json]]:
    """Yield (whose, metadata of the pod, its spec) of everything that makes pods."""
    for one in found:
        template: Json | None = None
        if one["kind"] in ("Deployment", "Job"):
            template = one["spec"]["template"]
        elif one["kind"] == "CronJob":
            template = one["spec"]["jobTemplate"]["spec"]["template"]
        elif one["kind"] == "Pod":
            template = one
        if template is not None:
            yield name_of(one), template["metadata"], template["spec"]


def selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Tell whether matchLabels choose something with these labels."""
    return all(labels.get(key) == value for key, value in selector.items())
