"""Build the source of each copy: a PDF that holds only that copy's pages; called by flows/scan in the sandbox.

The uploaded bytes themselves serve when the upload is one copy and clean. Otherwise the copy's pages are written to
a new file: content and image streams copied as they are, nothing else of the document (no Info, XMP, scripts,
actions, attachments, forms, links; what annotations show is drawn into the page). The two halves of an A3 page are
two pages that show the same image through different boxes. When a part of a scanned page belongs to another copy,
the image itself is cut, without loss: no byte of another student may be in the file.

The bytes depend only on the input, so a repeated attempt gives the same sha256.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pikepdf

from korrigo_ingest.engine import codec, raster
from korrigo_ingest.engine.boxes import WHOLE, PageBox, Rect, page_box
from korrigo_ingest.engine.content import content_streams, decoded
from korrigo_ingest.engine.document import opened, page_objects
from korrigo_ingest.engine.proof import scan_page
from korrigo_ingest.engine.pruning import Pruner
from korrigo_kit.sandbox import EngineError

RASTER_DPI = 300.0
"""Resolution of a part that had to be drawn because its page is not one JPEG."""

_FULL = 1 - 1e-6


@dataclass(frozen=True, slots=True)
class _Part:
    """One page of a copy: a part of a scanned page, and the quarter turns a person asked for."""

    index: int
    clip: Rect | None
    rotate: int

    @classmethod
    def read(cls, request: Mapping[str, Any]) -> _Part:
        clip = request.get("clip")
        return cls(
            index=int(request["index"]),
            clip=None if clip is None or tuple(clip) == WHOLE else (clip[0], clip[1], clip[2], clip[3]),
            rotate=int(request.get("rotate", 0)) % 360,
        )


def cut_copies(
    workdir: Path,
    *,
    copies: Sequence[Sequence[Mapping[str, Any]]],
    clean: bool,
    source: str = "source.pdf",
    prefix: str = "copy",
) -> list[dict[str, Any]]:
    """Write the source of each copy; `copies[i]` lists its pages {index, clip?, rotate?} in order.

    `clean` is what `inspect_pdf` told about this file. Returns for each copy {file, sha256, size, verbatim,
    page_count, pages: [{index, width, height, cropped}]}: width and height in points as displayed, `cropped` when the
    page's picture was cut out of its scan. `file` is the upload itself when verbatim. Raises EngineError
    CORRUPTED_PDF, RESOURCE_LIMIT and those of opening.
    """
    plans = [[_Part.read(page) for page in pages] for pages in copies]
    path = workdir / source
    with opened(path) as pdf:
        objects = page_objects(pdf)
        for part in (part for plan in plans for part in plan):
            if not 0 <= part.index < len(objects):
                raise EngineError("CORRUPTED_PDF", f"the PDF has no page {part.index + 1}")
        if len(plans) == 1 and clean and _is_everything(plans[0], len(objects)):
            return [_verbatim(source, path, [page_box(page) for page in objects])]
        if any("/Annots" in page for page in objects):
            _draw_annotations(pdf)
            objects = page_objects(pdf)
        cutter = _Cutter(pdf, path, objects)
        return [cutter.write(workdir / f"{prefix}-{number:04d}.pdf", plan) for number, plan in enumerate(plans)]


def _is_everything(plan: Sequence[_Part], pages: int) -> bool:
    return len(plan) == pages and all(
        part.index == position and part.clip is None and not part.rotate for position, part in enumerate(plan)
    )


def _verbatim(source: str, path: Path, boxes: Sequence[PageBox]) -> dict[str, Any]:
    pages = [
        {"index": index, "width": round(box.width, 3), "height": round(box.height, 3), "cropped": False}
        for index, box in enumerate(boxes)
    ]
    return {"file": source, **_digest(path), "verbatim": True, "page_count": len(boxes), "pages": pages}


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"sha256": sha256, "size": path.stat().st_size}


def _draw_annotations(pdf: pikepdf.Pdf) -> None:
    """Draw what annotations and form fields show into their pages; where qpdf cannot, they are left out."""
    with suppress(pikepdf.PdfError, RuntimeError, ValueError):
        form = pdf.Root.get("/AcroForm")
        if isinstance(form, pikepdf.Dictionary) and bool(form.get("/NeedAppearances", False)):
            pdf.generate_appearance_streams()
            form["/NeedAppearances"] = False  # or qpdf leaves the fields out
        pdf.flatten_annotations("screen")


class _Cutter:
    """Cuts copies out of one opened file."""

    def __init__(self, pdf: pikepdf.Pdf, path: Path, objects: Sequence[pikepdf.Dictionary]) -> None:
        self._pdf = pdf
        self._path = path
        self._objects = objects
        self._pruner = Pruner(pdf)
        self._shared: dict[int, tuple[pikepdf.Object, pikepdf.Object]] = {}

    def write(self, target: Path, plan: Sequence[_Part]) -> dict[str, Any]:
        """Write one copy."""
        whole = {index for index in {part.index for part in plan} if _covers_page(plan, index)}
        pages: list[dict[str, Any]] = []
        with pikepdf.new() as copy:
            for part in plan:
                box = page_box(self._objects[part.index])
                if part.index in whole:
                    page = self._shared_page(copy, part, box)
                else:
                    page = self._cropped_page(copy, part, box)
                copy.pages.append(pikepdf.Page(copy.make_indirect(page)))
                shown = page_box(page)
                pages.append(
                    {
                        "index": part.index,
                        "width": round(shown.width, 3),
                        "height": round(shown.height, 3),
                        "cropped": part.index not in whole,
                    }
                )
            self._keep_layers(copy)
            _save(copy, target)
        return {"file": target.name, **_digest(target), "verbatim": False, "page_count": len(pages), "pages": pages}

    def _shared_page(self, copy: pikepdf.Pdf, part: _Part, box: PageBox) -> pikepdf.Dictionary:
        """Make a page that shows a part of a scanned page of which this copy has every part."""
        original = self._objects[part.index]
        contents, resources = self._parts_of(part.index)
        shown = box.part(part.clip or WHOLE)
        media = shown if part.clip else box.rect
        page = pikepdf.Dictionary(
            Type=pikepdf.Name.Page,
            MediaBox=_array(media),
            CropBox=_array(shown),
            Contents=copy.copy_foreign(contents),
            Resources=copy.copy_foreign(resources),
        )
        rotate = (box.rotate + part.rotate) % 360
        if rotate:
            page["/Rotate"] = rotate
        if box.user_unit != 1:
            page["/UserUnit"] = original["/UserUnit"]
        group = original.get("/Group")
        if isinstance(group, pikepdf.Dictionary):
            kept = pikepdf.Dictionary({key: group[key] for key in ("/S", "/CS", "/I", "/K") if key in group})
            page["/Group"] = copy.copy_foreign(self._pdf.make_indirect(kept))
        return page

    def _parts_of(self, index: int) -> tuple[pikepdf.Object, pikepdf.Object]:
        """Give the content and pruned resources of a scanned page, made once."""
        if index not in self._shared:
            page = self._objects[index]
            resources = self._pruner.page_resources(page)
            self._shared[index] = (self._contents(page), resources)
        return self._shared[index]

    def _contents(self, page: pikepdf.Dictionary) -> pikepdf.Object:
        """Give the content as it is; a damaged stream becomes what decodes of it."""
        kept: list[pikepdf.Object] = []
        for stream in content_streams(page):
            data, is_whole = decoded(stream)
            for key in ("/F", "/FFilter", "/FDecodeParms", "/Metadata"):
                if key in stream.stream_dict:
                    del stream.stream_dict[key]
            kept.append(stream if is_whole else self._pdf.make_stream(data))
        if len(kept) == 1:
            return kept[0]
        return self._pdf.make_indirect(pikepdf.Array(kept))

    def _cropped_page(self, copy: pikepdf.Pdf, part: _Part, box: PageBox) -> pikepdf.Dictionary:
        """Make a page of its own picture, cut out of a scanned page of which other parts are another copy's."""
        pixels = codec.turned(codec.cropped(self._pixels(part.index, box), part.clip or WHOLE), part.rotate)
        u0, v0, u1, v1 = part.clip or WHOLE
        width, height = (u1 - u0) * box.width, (v1 - v0) * box.height
        if part.rotate % 180:
            width, height = height, width
        data, colours = codec.encode_lossless(pixels)
        image = pikepdf.Stream(copy, data)
        rows, columns = pixels.shape[:2]
        image.stream_dict = pikepdf.Dictionary(
            Type=pikepdf.Name.XObject,
            Subtype=pikepdf.Name.Image,
            Width=columns,
            Height=rows,
            BitsPerComponent=8,
            ColorSpace=pikepdf.Name.DeviceGray if colours == 1 else pikepdf.Name.DeviceRGB,
            Filter=pikepdf.Name.FlateDecode,
            DecodeParms=pikepdf.Dictionary(Predictor=15, Colors=colours, BitsPerComponent=8, Columns=columns),
        )
        drawing = f"q {width:.4f} 0 0 {height:.4f} 0 0 cm /Im0 Do Q\n".encode("ascii")
        return pikepdf.Dictionary(
            Type=pikepdf.Name.Page,
            MediaBox=_array((0.0, 0.0, width, height)),
            Contents=copy.make_stream(drawing),
            Resources=pikepdf.Dictionary(XObject=pikepdf.Dictionary(Im0=copy.make_indirect(image))),
        )

    def _pixels(self, index: int, box: PageBox) -> codec.Pixels:
        """Decode a scanned page at its own resolution; draw one that is not a plain JPEG."""
        proof = scan_page(self._objects[index], box)
        if proof is not None:
            try:
                return codec.decode(proof.data, is_grey=proof.is_grey)
            except ValueError as error:
                raise EngineError("CORRUPTED_PDF", f"the picture of page {index + 1} does not decode") from error
        with raster.document(self._path) as rendering:
            return raster.render(rendering, index, RASTER_DPI, user_unit=box.user_unit).pixels

    def _keep_layers(self, copy: pikepdf.Pdf) -> None:
        """Keep which layers are hidden, or what nobody saw would appear on the marked copy."""
        layers = self._pdf.Root.get("/OCProperties")
        if isinstance(layers, pikepdf.Dictionary):
            copied = layers if layers.is_indirect else self._pdf.make_indirect(layers)
            copy.Root["/OCProperties"] = copy.copy_foreign(copied)


def _covers_page(plan: Sequence[_Part], index: int) -> bool:
    """Tell whether a copy's parts of a scanned page make up the whole of it."""
    clips = [part.clip or WHOLE for part in plan if part.index == index]
    if WHOLE in clips:
        return True
    edges_x = sorted({0.0, 1.0, *(x for clip in clips for x in (clip[0], clip[2]))})
    edges_y = sorted({0.0, 1.0, *(y for clip in clips for y in (clip[1], clip[3]))})
    area = 0.0
    for x0, x1 in pairwise(edges_x):
        for y0, y1 in pairwise(edges_y):
            x, y = (x0 + x1) / 2, (y0 + y1) / 2
            if any(clip[0] <= x <= clip[2] and clip[1] <= y <= clip[3] for clip in clips):
                area += (x1 - x0) * (y1 - y0)
    return area >= _FULL


def _array(rect: Rect) -> pikepdf.Array:
    return pikepdf.Array([round(value, 4) for value in rect])


def _save(copy: pikepdf.Pdf, target: Path) -> None:
    """Write with streams as they are and a classic cross-reference table, which is the easiest to append to."""
    copy.save(
        target,
        compress_streams=False,
        stream_decode_level=pikepdf.StreamDecodeLevel.none,
        object_stream_mode=pikepdf.ObjectStreamMode.disable,
        recompress_flate=False,
        normalize_content=False,
        linearize=False,
        encryption=False,
        deterministic_id=True,
    )
