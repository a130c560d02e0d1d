"""The pages after the script: scores, appreciation, signature block, and the comments that found no room.

Called by `append`. A4, as many pages as the text needs; nothing is cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from korrigo_render.engine.canvas import Block, Canvas, Colour, Inks, Style, baseline
from korrigo_render.engine.labels import date, labels, moment, points
from korrigo_render.engine.manifest import Manifest, Question
from korrigo_render.engine.overlay import Moved

A4 = (595.28, 841.89)
_LEFT = 56.0
_RIGHT = A4[0] - 56.0
_WIDTH = _RIGHT - _LEFT
_TOP = 56.0
_BOTTOM = A4[1] - 58.0
_SCORE_AT = _RIGHT - 62.0  # right edges of the two number columns
_MAX_AT = _RIGHT - 4.0
_LABEL_WIDTH = _SCORE_AT - _LEFT - 60.0

_INK: Colour = (0.10, 0.11, 0.14)
_GREY: Colour = (0.40, 0.42, 0.46)
_RULE: Colour = (0.80, 0.82, 0.85)
_PALE: Colour = (0.955, 0.96, 0.97)
_ACCENT: Colour = (0.08, 0.28, 0.72)

_TITLE = Style(21, _INK, is_bold=True)
_SUBTITLE = Style(12.5, _INK)
_SECTION = Style(11, _ACCENT, is_bold=True)
_BODY = Style(9.6, _INK, leading=1.4)
_BOLD = replace(_BODY, is_bold=True)
_SMALL = Style(8.2, _GREY, leading=1.35)
_FINE = Style(7.6, _INK, leading=1.35)
_BIG = Style(25, _ACCENT, is_bold=True)


class Report:
    """Sets text down a column over as many A4 pages as needed."""

    def __init__(self, inks: Inks, manifest: Manifest) -> None:
        self.canvases: list[Canvas] = []
        self._inks = inks
        self._m = manifest
        self._words = labels(manifest.language)
        self._y = _TOP
        self._open_page()

    def draw(self, moved: Sequence[Moved]) -> list[Canvas]:
        """Draw everything and return the pages."""
        self._title()
        self._table()
        self._appreciation()
        self._signature()
        if moved:
            self._open_page()
            self._comments(moved)
        self._footers()
        return self.canvases

    @property
    def _canvas(self) -> Canvas:
        return self.canvases[-1]

    def _open_page(self) -> None:
        self.canvases.append(Canvas(self._inks, *A4))
        self._y = _TOP

    def _need(self, height: float, on_break: Callable[[], None] | None = None) -> None:
        """Start a new page when `height` does not fit on this one."""
        if self._y + height > _BOTTOM:
            self._open_page()
            if on_break is not None:
                on_break()

    def _lines(self, x: float, block: Block, on_break: Callable[[], None] | None = None) -> None:
        """Set a block that may run over pages; all lines that fit on one page are set at once."""
        rest = block.lines
        while rest:
            self._need(block.style.step, on_break)
            fitting = max(1, int((_BOTTOM - self._y + 1e-6) / block.style.step))
            part, rest = rest[:fitting], rest[fitting:]
            self._canvas.block(x, self._y, replace(block, lines=part))
            self._y += len(part) * block.style.step

    def _title(self) -> None:
        m, words, canvas = self._m, self._words, self._canvas
        total = f"{points(m.total_hundredths, m.language)} / {points(m.max_hundredths, m.language)}"
        box_width = self._inks.width(_BIG, total) + 28
        canvas.fill_rectangle(_RIGHT - box_width, _TOP, box_width, 50, _PALE)
        canvas.text(_RIGHT - box_width + 14, _TOP + 14, words["score"], _SMALL)
        canvas.text_right(_RIGHT - 14, _TOP + 40, total, _BIG)
        title_width = _WIDTH - box_width - 20
        canvas.text(_LEFT, _TOP + 20, words["title"], _TITLE)
        self._y = _TOP + 30
        self._lines(_LEFT, self._inks.block(m.exam_name, _SUBTITLE, title_width))
        self._y += 3
        facts = f"{words['copy']} {m.anonymous_id}   ·   {words['revision']} {m.revision}"
        if m.exam_date:
            facts = f"{date(m.exam_date, m.language)}   ·   {facts}"
        self._lines(_LEFT, self._inks.block(facts, replace(_SMALL, size=9.0), title_width))
        self._y = max(self._y, _TOP + 50) + 20

    def _table(self) -> None:
        if not self._m.questions:
            return
        self._table_head()
        for question in self._m.questions:
            self._row(question)
        self._need(26, self._table_head)
        canvas, m = self._canvas, self._m
        canvas.fill_rectangle(_LEFT, self._y, _WIDTH, 22, _PALE)
        y = self._y + 3 + baseline(_BOLD)
        canvas.text(_LEFT + 6, y, self._words["total"], _BOLD)
        canvas.text_right(_SCORE_AT, y, points(m.total_hundredths, m.language), _BOLD)
        canvas.text_right(_MAX_AT, y, points(m.max_hundredths, m.language), _BOLD)
        self._y += 24
        if any(q.state == "NOT_ATTEMPTED" for q in m.questions):
            self._lines(_LEFT + 6, self._inks.block(self._words["nt_legend"], _SMALL, _WIDTH))
        self._y += 16

    def _table_head(self) -> None:
        canvas = self._canvas
        y = self._y + baseline(_SMALL)
        canvas.text(_LEFT + 6, y, self._words["question"], _SMALL)
        canvas.text_right(_SCORE_AT, y, self._words["points"], _SMALL)
        canvas.text_right(_MAX_AT, y, self._words["max"], _SMALL)
        self._y += _SMALL.step + 3
        canvas.fill_rectangle(_LEFT, self._y, _WIDTH, 0.9, _INK)
        self._y += 3

    def _row(self, q: Question) -> None:
        indent = _LEFT + 6 + 12 * min(q.depth, 8)
        width = _LABEL_WIDTH - (indent - _LEFT)
        label = self._inks.block(q.label or "–", _BODY, width)
        remark = self._inks.block(q.remark, _SMALL, width) if q.remark else None
        self._need(min(label.height + (remark.height if remark else 0), 120.0) + 6, self._table_head)
        self._y += 2.5
        y = self._y + baseline(_BODY)
        language = self._m.language
        score = self._words["NT"] if q.state == "NOT_ATTEMPTED" else points(q.score_hundredths, language)
        self._canvas.text_right(_SCORE_AT, y, score, _BOLD)
        self._canvas.text_right(_MAX_AT, y, points(q.max_hundredths, language), replace(_BODY, colour=_GREY))
        self._lines(indent, label, self._table_head)
        if remark is not None:
            self._lines(indent, remark, self._table_head)
        self._y += 2.5
        self._canvas.fill_rectangle(_LEFT, self._y, _WIDTH, 0.4, _RULE)
        self._y += 0.5

    def _section(self, title: str, room: float) -> None:
        self._need(_SECTION.step + 6 + room)
        self._canvas.text(_LEFT, self._y + baseline(_SECTION), title, _SECTION)
        self._y += _SECTION.step + 6

    def _appreciation(self) -> None:
        if not self._m.appreciation.strip():
            return
        block = self._inks.block(self._m.appreciation.strip("\n"), _BODY, _WIDTH - 12)
        self._section(self._words["appreciation"], min(block.height, 3 * _BODY.step))
        top, page = self._y, len(self.canvases)
        self._lines(_LEFT + 12, block)
        if page == len(self.canvases):
            self._canvas.fill_rectangle(_LEFT, top + 1, 2, self._y - top - 2, _ACCENT)
        self._y += 18

    def _signature(self) -> None:
        """Set the block that says what was marked, by whom and when; it is never split over two pages."""
        m, words = self._m, self._words
        facts = [
            (words["copy"], m.anonymous_id),
            (words["revision"], str(m.revision)),
            (words["marker"], m.marker_code),
            (words["finalized"], moment(m.finalized_at, m.language)),
            (words["source"], m.source_sha256),
            (words["code"], f"{m.copy_id}/{m.revision}"),
        ]
        if m.public_url:
            facts.append((words["url"], f"{m.public_url.rstrip('/')}/verify/{m.copy_id}/{m.revision}"))
        blocks = [(name, self._inks.block(value, _FINE, _WIDTH - 128)) for name, value in facts]
        height = sum(block.height for _, block in blocks) + _BOLD.step + 22
        self._need(height)
        canvas, top = self._canvas, self._y
        canvas.fill_rectangle(_LEFT, top, _WIDTH, height, _PALE)
        canvas.text(_LEFT + 12, top + 8 + baseline(_BOLD), words["signature"], _BOLD)
        self._y = top + 12 + _BOLD.step
        for name, block in blocks:
            canvas.text(_LEFT + 12, self._y + baseline(_FINE), name, replace(_FINE, colour=_GREY))
            canvas.block(_LEFT + 116, self._y, block)
            self._y += block.height
        self._y = top + height

    def _comments(self, moved: Sequence[Moved]) -> None:
        self._section(self._words["comments"], 0)
        self._lines(_LEFT, self._inks.block(self._words["comments_hint"], _SMALL, _WIDTH))
        self._y += 8
        number_style = replace(_BOLD, size=8.2, colour=(1.0, 1.0, 1.0))
        for item in moved:
            where = f"{self._words['page']} {item.page_index + 1}"
            head = self._inks.block(f"{where}   {item.head}".rstrip(), replace(_BOLD, colour=item.colour), _WIDTH - 24)
            self._need(head.height + _BODY.step * bool(item.text))
            x, y = _LEFT + 7, self._y + _BODY.step / 2
            self._canvas.fill_circle(x, y, 7, item.colour)
            text = str(item.number)
            self._canvas.text(
                x - self._inks.width(number_style, text) / 2, y + number_style.size * 0.32, text, number_style
            )
            self._lines(_LEFT + 24, head)
            if item.text:
                self._lines(_LEFT + 24, self._inks.block(item.text, _BODY, _WIDTH - 24))
            self._y += 7

    def _footers(self) -> None:
        m, words = self._m, self._words
        left = self._inks.block(m.exam_name, _SMALL, _WIDTH - 170).lines[0]
        for i, canvas in enumerate(self.canvases):
            canvas.fill_rectangle(_LEFT, A4[1] - 46, _WIDTH, 0.4, _RULE)
            canvas.text(_LEFT, A4[1] - 34, left, _SMALL)
            right = f"{words['copy']} {m.anonymous_id}  ·  {words['page']} {i + 1}/{len(self.canvases)}"
            canvas.text_right(_RIGHT, A4[1] - 34, right, _SMALL)
