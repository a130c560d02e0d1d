"""The shared corpora, where a checkout has them beside it; tests of them are skipped loudly elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

CORPORA = Path(__file__).resolve().parents[2].parent / "shared" / "corpora"

needs_corpora = [
    pytest.mark.allowed_skip("a checkout without ../shared has no corpora"),
    pytest.mark.skipif(not CORPORA.is_dir(), reason=f"CORPORA MISSING: {CORPORA} is not there"),
]


def truth(name: str) -> Any:
    """Read a JSON file of the corpora; empty where they are missing, so that collection works."""
    path = CORPORA / name
    return json.loads(path.read_text()) if path.exists() else {}
