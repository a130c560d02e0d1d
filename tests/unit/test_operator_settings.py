"""One environment for every process of a cluster: the operator passes over what is another's, and refuses the rest."""

from __future__ import annotations

import subprocess
import sys

import pytest

from harness.processes import clean_environment
from korrigo import rooms
from korrigo_kit.settings import SettingsError, load
from korrigo_operator import settings
from korrigo_operator.settings import OperatorSettings


def test_the_sections_elsewhere_are_those_of_the_rooms_and_the_front_door() -> None:
    every = {model.section for model in rooms.sections()}
    assert every - {model.section for model in settings.SECTIONS} == settings.ELSEWHERE


@pytest.mark.parametrize("model", [model for model in rooms.sections() if model is not OperatorSettings])
def test_a_setting_of_a_room_is_no_concern_of_the_operator(model: type[OperatorSettings]) -> None:
    """Neither are its values, nor files that are mounted for it alone."""
    section = f"KORRIGO_{model.section.upper()}"
    environ = {f"{section}__{key.upper()}": "any" for key in model.model_fields}
    environ |= {f"{section}__SECRET_FILE": "/not/there", "KORRIGO_OPERATOR__IDENTITY": "me"}
    found = load(settings.SECTIONS, environ, elsewhere=settings.ELSEWHERE)
    assert found.get(OperatorSettings).identity == "me"
    assert model.section not in found.sections


@pytest.mark.parametrize(
    "variable",
    ["KORRIGO_OPERATOR__IDENTITI", "KORRIGO_JOBS__LEASE", "KORRIGO_LOKC__TTL_SECONDS", "KORRIGO_LOCK_TTL_SECONDS"],
)
def test_a_misspelt_setting_is_refused(variable: str) -> None:
    with pytest.raises(SettingsError, match=variable):
        load(settings.SECTIONS, {variable: "5"}, elsewhere=settings.ELSEWHERE)


@pytest.mark.parametrize(
    ("variable", "complaint"),
    [("KORRIGO_LOCK__TTL_SECONDS", "neither a service account nor a KUBECONFIG"), ("KORRIGO_LOKC__TTL", "unknown")],
)
def test_the_program_itself_goes_on_past_the_settings_of_the_rooms(variable: str, complaint: str) -> None:
    """Without a cluster it ends at the next thing that it needs."""
    environment = clean_environment() | {"KUBECONFIG": "/not/there", variable: "600"}
    words = [sys.executable, "-m", "korrigo_operator"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 78
    assert complaint in done.stderr
