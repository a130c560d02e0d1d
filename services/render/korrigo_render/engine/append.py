"""Make the final PDF of a copy: the source's bytes, then an incremental update with overlays and score pages.

Run in the sandbox by flows as `korrigo_render.engine.append:append`. The source is the byte prefix of the result,
so anyone can check that the script was not altered; the tail costs by annotation, not by the size of the scans.
Deterministic: equal source and manifest give equal bytes.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pikepdf

from korrigo_kit.sandbox import EngineError
from korrigo_render.engine.canvas import Canvas, Inks
from korrigo_render.engine.font import faces
from korrigo_render.engine.manifest import Annotation, Manifest, load
from korrigo_render.engine.overlay import Moved, Overlay
from korrigo_render.engine.score_page import A4, Report
from korrigo_render.engine.source import Source, SourcePage, open_source
from korrigo_render.engine.update import Update

_CHUNK = 1 << 20
_PLAIN_KEY = re.compile(r"/[A-Za-z0-9_.+-]*")


def warm_up() -> None:
    """Parse the fonts before the sandbox closes the door to the package's files; the zygote calls it once."""
    faces()


def append(
    workdir: Path, source: str = "source.pdf", manifest: str = "manifest.json", out: str = "final.pdf"
) -> dict[str, Any]:
    """Write the final PDF to `out` and describe it.

    Returns {pages, source_pages, score_pages, annotated_pages (0-based indexes), moved_comments, sha256, size}.
    Raises EngineError MANIFEST_INVALID, MISSING_PAGE, UNEXPECTED_PAGE,
    ANNOTATION_OUT_OF_PAGE, SOURCE_UNREADABLE, SOURCE_CHANGED.
    """
    order = load(workdir / manifest)
    opened = open_source(workdir / source)
    try:
        _check_pages(order, opened)
        drawing = _draw(order, opened)
    except pikepdf.PdfError as error:
        raise EngineError("SOURCE_UNREADABLE", "the source cannot be parsed", detail=str(error)) from error
    finally:
        opened.close()
    target = workdir / out
    sha256, size = _write(workdir / source, target, drawing.update, opened, order.source_sha256)
    return {
        "pages": len(opened.pages) + drawing.score_pages,
        "source_pages": len(opened.pages),
        "score_pages": drawing.score_pages,
        "annotated_pages": drawing.annotated_pages,
        "moved_comments": drawing.moved_comments,
        "sha256": sha256,
        "size": size,
    }


@dataclass(frozen=True, slots=True)
class _Drawing:
    update: Update
    score_pages: int
    annotated_pages: list[int]
    moved_comments: int


def _check_pages(order: Manifest, opened: Source) -> None:
    if order.page_count > len(opened.pages):
        raise EngineError("MISSING_PAGE", f"page {len(opened.pages) + 1} of the source is missing")
    if order.page_count < len(opened.pages):
        raise EngineError("UNEXPECTED_PAGE", f"the source has {len(opened.pages)} pages, the copy {order.page_count}")


def _draw(order: Manifest, opened: Source) -> _Drawing:
    update = Update(opened.tail)
    inks = Inks(update)
    by_page: dict[int, list[Annotation]] = {}
    for annotation in order.annotations:
        by_page.setdefault(annotation.page_index, []).append(annotation)
    moved: list[Moved] = []
    kids = _Kids(opened, update)
    for index in sorted(by_page):
        page = opened.pages[index]
        view = page.view()
        overlay = Overlay(inks, view, order.language, len(moved) + 1)
        overlay.draw(by_page[index])
        moved += overlay.moved
        _put_page(update, kids, page, inks, overlay.canvas, view.matrix)
    canvases = Report(inks, order).draw(moved)
    kids.append([_put_score_page(update, opened, inks, canvas) for canvas in canvases])
    inks.write(update)
    return _Drawing(update, len(canvases), sorted(by_page), len(moved))


class _Kids:
    """New versions of page tree nodes whose /Kids change."""

    def __init__(self, opened: Source, update: Update) -> None:
        self._opened = opened
        self._update = update
        self._changes: dict[tuple[int, int], tuple[pikepdf.Dictionary, dict[int, str]]] = {}

    def replace(self, page: SourcePage, reference: str) -> None:
        """Point one entry of a parent's /Kids elsewhere; written by `append`."""
        if page.parent_reference is None:
            raise EngineError("SOURCE_UNREADABLE", "the source's page tree has a node that cannot be replaced")
        self._changes.setdefault(page.parent_reference, (page.parent, {}))[1][page.position] = reference

    def append(self, pages: list[int]) -> None:
        """Add pages at the end of the document and write every changed node.

        The root's list is written again: 7 bytes a page in a flat tree. A new root above it would cost nothing,
        but the old root would then have to name its parent, which writes the same list.
        """
        root = self._opened.root_pages
        self._changes.setdefault(root.objgen, (root, {}))
        for (number, generation), (node, replaced) in sorted(self._changes.items(), key=lambda item: item[0]):
            kids = [_text(kid) for kid in node["/Kids"].as_list()]
            for position, reference in replaced.items():
                kids[position] = reference
            own = {key: _text(value) for key, value in node.items() if key != "/Kids"}
            if (number, generation) == root.objgen:
                kids += [f"{page} 0 R" for page in pages]
                own["/Count"] = str(len(self._opened.pages) + len(pages))
            self._update.put(number, f"<<{_entries(own)}/Kids[{' '.join(kids)}]>>", generation)


def _put_page(
    update: Update, kids: _Kids, page: SourcePage, inks: Inks, canvas: Canvas, matrix: tuple[float, ...]
) -> None:
    """Write the new version of an annotated page: its own content, then the overlay as a form."""
    names = _dictionary(page.attribute("/Resources"))
    forms = _dictionary(names.get("/XObject"))
    overlay_name = _free_name("/Korrigo", forms)
    form = update.reserve()
    box = f"0 0 {_number(canvas.width)} {_number(canvas.height)}"
    update.put_stream(
        form,
        f"/Type/XObject/Subtype/Form/BBox[{box}]/Matrix[{' '.join(map(_number, matrix))}]"
        f"/Resources {inks.resources} 0 R",
        canvas.content(),
    )
    added = {overlay_name: f"{form} 0 R"}
    balance = page.balance()
    apart = page.decoded_contents() if balance.must_stand_apart else None
    if apart is not None:  # inside a form, whose end ends everything
        inner, inner_name = update.reserve(), _free_name("/KorrigoPage", forms)
        _put_content_as_form(update, inner, page, apart)
        added[inner_name] = f"{inner} 0 R"
        after = update.shared_stream(f"q {inner_name} Do Q q {overlay_name} Do Q".encode())
        contents = [f"{after} 0 R"]
    else:
        before = update.shared_stream(b"q")
        after = update.shared_stream(f"\n{balance.closing}Q q {overlay_name} Do Q".encode())
        contents = [f"{before} 0 R", *page.contents(), f"{after} 0 R"]
    entries = {key: _text(value) for key, value in page.node.items()}
    entries["/Contents"] = f"[{' '.join(contents)}]"
    entries["/Resources"] = _merged(names, "/XObject", forms, added)
    body = f"<<{_entries(entries)}>>"
    if page.reference is not None and not page.is_repeated:
        update.put(page.reference[0], body, page.reference[1])
    else:  # a page that is listed twice, or written inside its parent: this place gets its own object
        number = update.reserve()
        update.put(number, body)
        kids.replace(page, f"{number} 0 R")


def _put_content_as_form(update: Update, number: int, page: SourcePage, content: bytes) -> None:
    everywhere = "[-100000 -100000 100000 100000]"
    own = page.attribute("/Resources")
    names = f"/Resources {_text(own)}" if own is not None else "/Resources<<>>"
    update.put_stream(number, f"/Type/XObject/Subtype/Form/BBox{everywhere}{names}", content)


def _put_score_page(update: Update, opened: Source, inks: Inks, canvas: Canvas) -> int:
    """Write one page after the script; it names every attribute that it could otherwise inherit."""
    number, content = update.reserve(), update.reserve()
    parent, generation = opened.root_pages.objgen
    box = f"[0 0 {_number(A4[0])} {_number(A4[1])}]"
    update.put(
        number,
        f"<</Type/Page/Parent {parent} {generation} R/MediaBox{box}/CropBox{box}/Rotate 0"
        f"/Resources {inks.resources} 0 R/Contents {content} 0 R>>",
    )
    update.put_stream(content, "", canvas.content())
    return number


def _write(source: Path, target: Path, update: Update, opened: Source, expected_sha256: str) -> tuple[str, int]:
    """Copy the source and append the tail; hash once while copying."""
    digest = hashlib.sha256()
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(_CHUNK):
            digest.update(chunk)
            writer.write(chunk)
        if digest.hexdigest() != expected_sha256:
            target.unlink()
            raise EngineError("SOURCE_CHANGED", "the source is not the file that the manifest names")
        tail = update.write(opened.size, expected_sha256, ends_in_newline=opened.ends_in_newline)
        digest.update(tail)
        writer.write(tail)
    return digest.hexdigest(), opened.size + len(tail)


def _dictionary(value: object) -> dict[str, pikepdf.Object]:
    return dict(value.items()) if isinstance(value, pikepdf.Dictionary) else {}


def _merged(names: dict[str, pikepdf.Object], kind: str, old: dict[str, pikepdf.Object], new: dict[str, str]) -> str:
    inner = {**{key: _text(value) for key, value in old.items()}, **new}
    whole = {key: _text(value) for key, value in names.items()}
    whole[kind] = f"<<{_entries(inner)}>>"
    return f"<<{_entries(whole)}>>"


def _free_name(wanted: str, taken: dict[str, pikepdf.Object]) -> str:
    name, n = wanted, 1
    while name in taken:
        n += 1
        name = f"{wanted}{n}"
    return name


def _text(value: object) -> str:
    """Write a value as the source wrote it: an indirect one stays a reference."""
    if isinstance(value, pikepdf.Object):
        return value.unparse().decode("latin-1")
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    return format(value, "f") if isinstance(value, Decimal) else str(value)


def _entries(values: dict[str, str]) -> str:
    """Write dictionary entries; keys with unusual characters are escaped again."""
    return "".join(
        f"{key if _PLAIN_KEY.fullmatch(key) else pikepdf.Name(key).unparse().decode('latin-1')} {value}"
        for key, value in values.items()
    )


def _number(value: float) -> str:
    text = f"{value:.5f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text
