"""What the engine is told about one copy: the JSON that `flows` writes from the finalise manifest.

Schema, version 1 (all keys present unless marked with a question mark; unknown keys are ignored):

    {"v": 1, "copy_id", "anonymous_id", "revision": int >= 1, "exam": {"name", "date": "YYYY-MM-DD" | null},
     "pages":       [{"page_id", "index", "width", "height"}]            one per page of the source, points
     "annotations": [{"id", "page_index", "x", "y", "w", "h", "type", "content",
                      "score_delta_hundredths": int | null, "question_label": str | null,
                      "strokes"?: [{"width", "points": [[x, y, pressure?], ...]}]}]
     "questions":   [{"id", "label", "max_hundredths", "score_hundredths": int | null,
                      "state": "SCORED" | "NOT_ATTEMPTED" | "UNMARKED", "remark"?: str, "depth"?: int}]
     "total_hundredths": int | null, "max_hundredths": int, "appreciation": str, "marker_code": str,
     "finalized_at": ISO 8601 with offset, "source_sha256": hex, "public_url": str | null, "language": "fr" | "en"}

x, y, w, h and stroke points are fractions of the page as displayed (after CropBox and /Rotate): origin top left,
x to the right, y down. A stroke's width is a fraction of the displayed page's width. Points (marks) are integer
hundredths (decisions.md, Decimals). Nothing here comes from the clock: equal manifests give equal bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from korrigo_kit.glyphs import normalise
from korrigo_kit.sandbox import EngineError

Kind = Literal["COMMENT", "HIGHLIGHT", "ERROR", "BONUS", "TEXT", "INK", "STAMP"]
KINDS: tuple[Kind, ...] = ("COMMENT", "HIGHLIGHT", "ERROR", "BONUS", "TEXT", "INK", "STAMP")
STATES = ("SCORED", "NOT_ATTEMPTED", "UNMARKED")
# Rounding of the client's own arithmetic (domain.md 1.5); beyond it the annotation is outside the page.
EDGE = 1e-6


@dataclass(frozen=True, slots=True)
class Stroke:
    """One pen stroke: points (x, y, pressure), pressure 1.0 when the device told none."""

    width: float
    points: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True, slots=True)
class Annotation:
    """One annotation of a page."""

    id: str
    page_index: int
    x: float
    y: float
    w: float
    h: float
    type: Kind
    content: str
    score_delta_hundredths: int | None
    question_label: str | None
    strokes: tuple[Stroke, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """One line of the score table; a parent in the scheme has `depth` 0 and its leaves 1, 2, ..."""

    label: str
    max_hundredths: int
    score_hundredths: int | None
    state: str
    remark: str
    depth: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """One revision of one copy, ready to be drawn."""

    copy_id: str
    anonymous_id: str
    revision: int
    exam_name: str
    exam_date: str | None
    page_count: int
    annotations: tuple[Annotation, ...]
    questions: tuple[Question, ...]
    total_hundredths: int | None
    max_hundredths: int
    appreciation: str
    marker_code: str
    finalized_at: str
    source_sha256: str
    public_url: str | None
    language: str


def load(path: Path) -> Manifest:
    """Read and check the manifest; EngineError MANIFEST_INVALID, MISSING_PAGE or ANNOTATION_OUT_OF_PAGE."""
    try:
        document = json.loads(path.read_bytes())
        return _manifest(document)
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise EngineError("MANIFEST_INVALID", "the manifest cannot be read", detail=repr(error)[:500]) from error


def _manifest(d: Mapping[str, Any]) -> Manifest:
    if d["v"] != 1:
        raise EngineError("MANIFEST_INVALID", f"manifest version {d['v']!r:.20} is not known")
    indexes = sorted(int(page["index"]) for page in d["pages"])
    if indexes != list(range(len(indexes))):
        gap = next(i for i, index in enumerate([*indexes, None]) if i != index)
        raise EngineError("MISSING_PAGE", f"page {gap + 1} is not in the manifest")
    return Manifest(
        copy_id=str(d["copy_id"]),
        anonymous_id=normalise(d["anonymous_id"]),
        revision=int(d["revision"]),
        exam_name=normalise(d["exam"]["name"]),
        exam_date=d["exam"]["date"],
        page_count=len(indexes),
        annotations=tuple(_annotation(a, len(indexes)) for a in d["annotations"]),
        questions=tuple(_question(q) for q in d["questions"]),
        total_hundredths=_optional_int(d["total_hundredths"]),
        max_hundredths=int(d["max_hundredths"]),
        appreciation=normalise(d["appreciation"] or ""),
        marker_code=normalise(d["marker_code"]),
        finalized_at=str(d["finalized_at"]),
        source_sha256=str(d["source_sha256"]),
        public_url=d["public_url"],
        language=str(d["language"]),
    )


def _annotation(d: Mapping[str, Any], page_count: int) -> Annotation:
    kind = d["type"]
    if kind not in KINDS:
        raise EngineError("MANIFEST_INVALID", f"annotation {d['id']}: type {kind!r:.40} is not known")
    annotation = Annotation(
        id=str(d["id"]),
        page_index=int(d["page_index"]),
        x=float(d["x"]),
        y=float(d["y"]),
        w=float(d["w"]),
        h=float(d["h"]),
        type=kind,
        content=normalise(d["content"] or "").strip(),
        score_delta_hundredths=_optional_int(d["score_delta_hundredths"]),
        question_label=normalise(d["question_label"]) if d["question_label"] else None,
        strokes=tuple(_stroke(s) for s in d.get("strokes") or ()),
    )
    _check_inside(annotation, page_count)
    return annotation


def _stroke(d: Mapping[str, Any]) -> Stroke:
    points = tuple((float(p[0]), float(p[1]), float(p[2]) if len(p) > 2 else 1.0) for p in d["points"])
    return Stroke(width=float(d["width"]), points=points)


def _check_inside(a: Annotation, page_count: int) -> None:
    numbers = [a.x, a.y, a.w, a.h, *(v for s in a.strokes for p in s.points for v in p)]
    if not all(math.isfinite(v) for v in [*numbers, *(s.width for s in a.strokes)]):
        raise EngineError("ANNOTATION_OUT_OF_PAGE", f"annotation {a.id}: a coordinate is not a number")
    spots = [(a.x, a.y), (a.x + a.w, a.y + a.h), *((p[0], p[1]) for s in a.strokes for p in s.points)]
    if a.w < 0 or a.h < 0 or any(not (-EDGE <= v <= 1 + EDGE) for spot in spots for v in spot):
        raise EngineError("ANNOTATION_OUT_OF_PAGE", f"annotation {a.id} lies outside page {a.page_index + 1}")
    if not 0 <= a.page_index < page_count:
        raise EngineError("ANNOTATION_OUT_OF_PAGE", f"annotation {a.id}: there is no page {a.page_index + 1}")


def _question(d: Mapping[str, Any]) -> Question:
    if d["state"] not in STATES:
        raise EngineError("MANIFEST_INVALID", f"question {d['id']}: state {d['state']!r:.40} is not known")
    return Question(
        label=normalise(d["label"]),
        max_hundredths=int(d["max_hundredths"]),
        score_hundredths=_optional_int(d["score_hundredths"]),
        state=d["state"],
        remark=normalise(d.get("remark") or "").strip(),
        depth=int(d.get("depth") or 0),
    )


def _optional_int(value: Any) -> int | None:
    return None if value is None else int(value)
