"""The manifest of a final PDF: everything that decides its bytes, taken from the rows as they are now."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from korrigo_grading.domain import finalisation
from korrigo_grading.domain import scores as rules
from korrigo_grading.domain.scheme import Question
from korrigo_grading.domain.scores import NOT_ATTEMPTED, Score, Sheet
from korrigo_grading.models import annotations as rows
from korrigo_grading.models import assemblies, scores
from korrigo_grading.models.annotations import Annotation
from korrigo_grading.models.assemblies import PageRow
from korrigo_grading.models.copies import Copy
from korrigo_kit.db import Tx
from korrigo_protos.render.v1 import events_pb2

VERSION = 1
_LANGUAGE = "fr"


@dataclass(frozen=True, slots=True)
class Draft:
    """A copy's manifest as bytes, and the mark it states."""

    data: bytes
    sheet: Sheet


def draft(tx: Tx, copy: Copy, *, marker_id: str, finalized_at: str, public_url: str) -> Draft:
    """Build the manifest of a copy's present revision.

    Raises StateConflict (SCORE_INCOMPLETE, ANNOTATION_ORPHANED). The same rows and arguments give the same bytes.
    """
    pages = assemblies.pages(tx, copy.id)
    made = rows.page(tx, copy.id)
    written = scores.read(tx, copy.id)
    deltas = [rules.Delta(a.score_delta, a.question_id) for a in made if a.score_delta is not None]
    sheet = rules.sheet(copy.leaves, copy.max_score, written.scores, deltas)
    finalisation.check(sheet, [a.id for a in made if a.page_index is None])
    labels = {leaf.id: leaf.label for leaf in copy.leaves}
    manifest = events_pb2.Manifest(
        version=VERSION,
        copy_id=copy.id,
        anonymous_id=copy.anonymous_id,
        revision=copy.revision,
        exam=events_pb2.Manifest.Exam(name=copy.exam_name, date=copy.exam_date),
        assembly=copy.assembly,
        source_sha256=copy.source_sha256 or "",
        pages=[_page(page) for page in pages],
        annotations=[_annotation(a, labels) for a in made],
        questions=_questions(copy.questions, sheet),
        total_hundredths=sheet.total,
        max_hundredths=sheet.maximum,
        appreciation=written.appreciation or "",
        marker_code=finalisation.marker_code(marker_id),
        finalized_at=finalized_at,
        public_url=public_url,
        language=_LANGUAGE,
    )
    return Draft(manifest.SerializeToString(deterministic=True), sheet)


def _page(page: PageRow) -> events_pb2.Manifest.Page:
    return events_pb2.Manifest.Page(page_id=page.page_id, index=page.page_index, width=page.width, height=page.height)


def _annotation(annotation: Annotation, labels: Mapping[str, str]) -> events_pb2.Manifest.Annotation:
    return events_pb2.Manifest.Annotation(
        id=annotation.id,
        page_index=annotation.page_index or 0,
        x=annotation.x,
        y=annotation.y,
        w=annotation.w,
        h=annotation.h,
        type=annotation.type,
        content=annotation.content,
        score_delta_hundredths=annotation.score_delta,
        question_label=labels.get(annotation.question_id or "", ""),
        strokes=[
            events_pb2.Manifest.Stroke(width=stroke["width"], points=[_point(point) for point in stroke["points"]])
            for stroke in annotation.strokes or ()
        ],
    )


def _point(point: Sequence[float]) -> events_pb2.Manifest.Point:
    return events_pb2.Manifest.Point(x=point[0], y=point[1], pressure=point[2] if len(point) > 2 else None)


def _questions(questions: Iterable[Question], sheet: Sheet) -> list[events_pb2.Manifest.Question]:
    by_id: dict[str, Score] = {line.id: line.score for line in sheet.lines}
    return list(_lines(questions, by_id, 0))


def _lines(
    questions: Iterable[Question], by_id: Mapping[str, Score], depth: int
) -> Iterator[events_pb2.Manifest.Question]:
    for question in questions:
        score = _score(question, by_id)
        yield events_pb2.Manifest.Question(
            id=question.id,
            label=question.label,
            max_hundredths=question.hundredths,
            score_hundredths=score if isinstance(score, int) else None,
            state="SCORED" if isinstance(score, int) else "NOT_ATTEMPTED" if score == NOT_ATTEMPTED else "UNMARKED",
            depth=depth,
        )
        yield from _lines(question.children, by_id, depth + 1)


def _score(question: Question, by_id: Mapping[str, Score]) -> Score:
    """A parent has the sum of its children, and is not attempted when none of them was."""
    if not question.children:
        return by_id.get(question.id)
    below = [_score(child, by_id) for child in question.children]
    if all(score == NOT_ATTEMPTED for score in below):
        return NOT_ATTEMPTED
    if any(score is None for score in below):
        return None
    return sum(score for score in below if isinstance(score, int))
