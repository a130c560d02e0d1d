"""Keep of a page's resources only what its content names, all the way down; called when a source is cut.

Scanners and merging programs like one resource dictionary for all pages. Copied as it is, it would drag the pictures
of every student into every copy.
"""

from __future__ import annotations

from typing import Any

import pikepdf

from korrigo_ingest.engine.content import decoded, is_image, names_in, page_names
from korrigo_kit.sandbox import EngineError

NESTING_LIMIT = 50_000
"""Resources looked at for one file; a scan's page has one or two."""

_CATEGORIES = ("/XObject", "/Font", "/Pattern", "/Shading", "/ExtGState", "/ColorSpace")
_LEFT_OUT = (
    "/Metadata", "/PieceInfo", "/LastModified", "/OPI", "/Ref", "/AF", "/Alternates", "/StructParent",
    "/StructParents", "/F", "/FFilter", "/FDecodeParms", "/PtData", "/Measure",
)  # fmt: skip
_LAYER_TYPES = frozenset({"/OCG", "/OCMD"})


class Pruner:
    """Prunes the resources of the pages of one opened file, in memory; the file itself is not touched."""

    def __init__(self, pdf: pikepdf.Pdf) -> None:
        self._pdf = pdf
        self._done: set[tuple[int, int]] = set()
        self._waiting: list[Any] = []
        self._looked_at = 0

    def page_resources(self, page: pikepdf.Dictionary) -> pikepdf.Object:
        """Make the pruned resource dictionary of a page, as a new indirect object."""
        pruned = self._pruned(page.get("/Resources"), page_names(page))
        self._drain()
        return self._pdf.make_indirect(pruned)

    def _pruned(self, resources: Any, names: set[str]) -> pikepdf.Dictionary:
        kept = pikepdf.Dictionary()
        if not isinstance(resources, pikepdf.Dictionary):
            return kept
        for category in _CATEGORIES:
            entries = resources.get(category)
            if isinstance(entries, pikepdf.Dictionary):
                chosen = _only(entries, names)
                kept[category] = chosen
                self._waiting.extend(chosen.values())
        layers = resources.get("/Properties")
        if isinstance(layers, pikepdf.Dictionary):
            shown = {name for name, layer in layers.items() if _is_layer(layer)}
            kept["/Properties"] = _only(layers, shown & names)
        if "/ProcSet" in resources and isinstance(resources["/ProcSet"], pikepdf.Array):
            kept["/ProcSet"] = resources["/ProcSet"]
        return kept

    def _drain(self) -> None:
        """Prune what the kept resources use in their turn: forms, patterns, Type 3 fonts, soft masks."""
        while self._waiting:
            item = self._waiting.pop()
            if not isinstance(item, (pikepdf.Stream, pikepdf.Dictionary)):
                continue
            if item.is_indirect:
                if item.objgen in self._done:
                    continue
                self._done.add(item.objgen)
            self._looked_at += 1
            if self._looked_at > NESTING_LIMIT:
                raise EngineError("RESOURCE_LIMIT", "the PDF's resources are too many to be checked")
            if isinstance(item, pikepdf.Stream):
                self._stream(item)
            else:
                self._dictionary(item)

    def _stream(self, stream: pikepdf.Stream) -> None:
        for key in _LEFT_OUT:
            if key in stream.stream_dict:
                del stream.stream_dict[key]
        if is_image(stream):
            return
        own = stream.stream_dict.get("/Resources")
        if isinstance(own, pikepdf.Dictionary):
            stream.stream_dict["/Resources"] = self._pruned(own, names_in(decoded(stream)[0]))

    def _dictionary(self, item: pikepdf.Dictionary) -> None:
        """Fonts (Type 3 draw with resources), graphics states (a soft mask is a form), shading patterns."""
        drawings = item.get("/CharProcs")
        if isinstance(drawings, pikepdf.Dictionary):
            names: set[str] = set()
            for drawing in drawings.values():
                if isinstance(drawing, pikepdf.Stream):
                    names |= names_in(decoded(drawing)[0])
            if "/Resources" in item:
                item["/Resources"] = self._pruned(item["/Resources"], names)
        mask = item.get("/SMask")
        if isinstance(mask, pikepdf.Dictionary):
            self._waiting.append(mask.get("/G"))


def _only(entries: pikepdf.Dictionary, names: set[str]) -> pikepdf.Dictionary:
    """Copy a dictionary without what is not named (item by item: the constructor takes no name outside UTF-8)."""
    kept = pikepdf.Dictionary()
    for name, value in entries.items():
        if name in names:
            kept[name] = value
    return kept


def _is_layer(value: Any) -> bool:
    return isinstance(value, pikepdf.Dictionary) and str(value.get("/Type", "")) in _LAYER_TYPES
