"""Find what a PDF would do by itself: JavaScript, launching programs, files inside it, data outside it.

The rule (decisions.md, corpora/hard-pdfs): a script or a program that starts when the document or a page opens is
refused (JAVASCRIPT, ACTIVE_CONTENT), and so is a stream whose data lie in another file. What waits for a click in a
form or a link, and files attached, are never run and never copied: such a PDF is accepted but not clean, and the
source of the copy is written without them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pikepdf

from korrigo_kit.sandbox import EngineError

_CHAIN_LIMIT = 64
_TREE_LIMIT = 1000
_MARKS = frozenset({"/JS", "/AA", "/EF", "/EmbeddedFiles", "/XFA", "/RichMediaContent", "/AF"})
_ACTIVE_ACTIONS = frozenset(
    {
        "/JavaScript", "/Launch", "/GoToR", "/GoToE", "/ImportData", "/SubmitForm", "/ResetForm", "/Rendition",
        "/Movie", "/Sound", "/RichMediaExecute", "/SetOCGState", "/Trans", "/GoTo3DView", "/Hide",
    }
)  # fmt: skip
_ACTIVE_TYPES = frozenset({"/EmbeddedFile", "/Filespec", "/F"})
_ACTIVE_ANNOTATIONS = frozenset({"/FileAttachment", "/RichMedia", "/Movie", "/Screen", "/Sound", "/3D"})


def refuse_active_document(pdf: pikepdf.Pdf, pages: Iterable[pikepdf.Dictionary]) -> None:
    """Refuse what would run by itself on opening. Raises EngineError JAVASCRIPT, ACTIVE_CONTENT."""
    root = pdf.Root
    if not isinstance(root, pikepdf.Dictionary):
        raise EngineError("CORRUPTED_PDF", "the PDF has no catalog")
    names = root.get("/Names")
    if isinstance(names, pikepdf.Dictionary) and _has_entries(names.get("/JavaScript")):
        raise EngineError("JAVASCRIPT", "the document carries JavaScript")
    _refuse_action(root.get("/OpenAction"), "on opening the document")
    _refuse_triggers(root, "on opening, printing or saving the document")
    for page in pages:
        _refuse_triggers(page, "on turning a page")


def is_external(stream: pikepdf.Stream) -> bool:
    """Tell whether a stream says that its data lie in another file (/F as a file, not the filter's short name)."""
    value = stream.stream_dict.get("/F")
    return isinstance(value, (pikepdf.String, pikepdf.Dictionary, str, bytes)) and not isinstance(value, pikepdf.Name)


def is_active(dictionary: pikepdf.Dictionary) -> bool:
    """Tell whether a dictionary is or holds something that acts, or a file, so that the PDF is not clean."""
    keys = set(dictionary.keys())
    if keys & _MARKS:
        return True
    if _name(dictionary.get("/S")) in _ACTIVE_ACTIONS:
        return True
    return _name(dictionary.get("/Type")) in _ACTIVE_TYPES or _name(dictionary.get("/Subtype")) in _ACTIVE_ANNOTATIONS


def _name(value: Any) -> str:
    return str(value) if isinstance(value, pikepdf.Name) else ""


def _refuse_triggers(holder: pikepdf.Dictionary, when: str) -> None:
    triggers = holder.get("/AA")
    if isinstance(triggers, pikepdf.Dictionary):
        for action in triggers.values():
            _refuse_action(action, when)


def _refuse_action(action: Any, when: str) -> None:
    for step in _steps(action):
        kind = _name(step.get("/S"))
        if kind == "/JavaScript" or "/JS" in step:
            raise EngineError("JAVASCRIPT", f"the PDF runs JavaScript {when}")
        if kind in {"/Launch", "/ImportData"}:
            raise EngineError("ACTIVE_CONTENT", f"the PDF starts an action {when}: {kind[1:]}")


def _steps(action: Any) -> Iterator[pikepdf.Dictionary]:
    """Walk an action and what follows it (/Next, one or several), bounded against cycles."""
    waiting = [action]
    for _ in range(_CHAIN_LIMIT):
        if not waiting:
            return
        step = waiting.pop()
        if not isinstance(step, pikepdf.Dictionary):
            continue
        yield step
        following = step.get("/Next")
        waiting.extend(following.as_list() if isinstance(following, pikepdf.Array) else [following])


def _has_entries(tree: Any) -> bool:
    """Tell whether a name tree has at least one name, bounded against cycles."""
    waiting = [tree]
    for _ in range(_TREE_LIMIT):
        if not waiting:
            return False
        node = waiting.pop()
        if not isinstance(node, pikepdf.Dictionary):
            continue
        names, kids = node.get("/Names"), node.get("/Kids")
        if isinstance(names, pikepdf.Array) and len(names):
            return True
        if isinstance(kids, pikepdf.Array):
            waiting.extend(kids.as_list())
    return True
