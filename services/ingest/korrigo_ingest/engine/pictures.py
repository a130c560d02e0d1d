"""Make the pictures of pages that people look at; called by flows/scan in the sandbox, at most 20 pages a call.

A page that provably is one JPEG is shown by the scan's own bytes; a half of such a page is decoded at the wanted
resolution, sliced and encoded; every other page is rendered. The picture is the page as displayed: CropBox, /Rotate
and the turn asked for by a person applied.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pikepdf
import pypdfium2

from korrigo_ingest.engine import codec, raster
from korrigo_ingest.engine.boxes import WHOLE, PageBox, Rect, page_box
from korrigo_ingest.engine.document import opened, page_objects
from korrigo_ingest.engine.proof import ScanPage, scan_page
from korrigo_kit.sandbox import EngineError

DPI = 150.0
MAX_PAGES = 20
"""Pages of one call: the limits of one sandbox child are made for that many."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One page picture to make."""

    index: int
    clip: Rect | None
    rotate: int
    mask: float

    @classmethod
    def read(cls, request: Mapping[str, Any]) -> _Wanted:
        clip = request.get("clip")
        return cls(
            index=int(request["index"]),
            clip=None if clip is None or tuple(clip) == WHOLE else (clip[0], clip[1], clip[2], clip[3]),
            rotate=int(request.get("rotate", 0)) % 360,
            mask=min(1.0, max(0.0, float(request.get("mask", 0.0)))),
        )


@dataclass(frozen=True, slots=True)
class _Source:
    """A scanned page, decoded or rendered once for all pictures taken from it."""

    box: PageBox
    proof: ScanPage | None
    pixels: codec.Pixels | None
    dpi: float
    is_scaled_down: bool


def page_pictures(
    workdir: Path,
    *,
    pages: Sequence[Mapping[str, Any]],
    source: str = "source.pdf",
    dpi: float = DPI,
    prefix: str = "picture",
    find_blank: bool = True,
) -> list[dict[str, Any]]:
    """Make a picture of each page {index, clip?, rotate?, mask?}, in the order asked for.

    `clip`: x0, y0, x1, y1 in fractions of the displayed page, y down; `rotate`: further clockwise quarter turns;
    `mask`: fraction of the (turned) picture's height to paint over in a second file; `find_blank` costs 2 ms a page
    on the scan's own bytes and nothing elsewhere (without it `is_blank` is null).
    Returns for each page {index, ok: true, file, sha256, size, width, height, mime, verbatim, dpi, scaled_down,
    is_blank, masked_file?, masked_sha256?, masked_size?} or {index, ok: false, reason, message}: a page that fails
    does not keep the others from being made. Raises EngineError when the file as a whole cannot be read.
    """
    if len(pages) > MAX_PAGES:
        raise EngineError("RESOURCE_LIMIT", f"at most {MAX_PAGES} pages at a time")
    wanted = [_Wanted.read(page) for page in pages]
    results: list[dict[str, Any]] = [{} for _ in wanted]
    path = workdir / source
    with opened(path) as pdf, raster.document(path) as rendering:
        objects = page_objects(pdf)
        for index in sorted({page.index for page in wanted}):
            mine = [number for number, page in enumerate(wanted) if page.index == index]
            try:
                page = _source(objects, index, rendering, dpi, [wanted[number] for number in mine])
                for number in mine:
                    results[number] = _picture(workdir, f"{prefix}-{number:04d}", page, wanted[number], find_blank)
            except EngineError as error:
                for number in mine:
                    results[number] = _failure(index, error.reason, error.message)
            except (ValueError, MemoryError, pikepdf.PdfError) as error:
                reason = "RESOURCE_LIMIT" if isinstance(error, MemoryError) else "CORRUPTED_PDF"
                for number in mine:
                    results[number] = _failure(index, reason, f"page {index + 1}: {error!s:.200}")
    return results


def _failure(index: int, reason: str, message: str) -> dict[str, Any]:
    return {"index": index, "ok": False, "reason": reason, "message": message}


def _source(
    objects: Sequence[pikepdf.Dictionary], index: int, rendering: Any, dpi: float, wanted: Sequence[_Wanted]
) -> _Source:
    """Prove or render one page; pixels are made only when a picture needs them."""
    if not 0 <= index < len(objects):
        raise EngineError("CORRUPTED_PDF", f"the PDF has no page {index + 1}")
    box = page_box(objects[index])
    proof = scan_page(objects[index], box)
    if proof is None:
        made = raster.render(rendering, index, dpi, is_grey=_is_grey(objects[index]), user_unit=box.user_unit)
        return _Source(box, None, made.pixels, made.dpi, made.is_scaled_down)
    if all(_is_verbatim(page, proof) for page in wanted):
        return _Source(box, proof, None, _native_dpi(proof, box), False)
    fitting = raster.fitting_dpi(box.width, box.height, dpi)
    pixels = _decoded(proof, box, fitting)
    reached = min(pixels.shape[1] / box.width * 72, _native_dpi(proof, box))
    return _Source(box, proof, pixels, reached, fitting < dpi)


def _is_verbatim(page: _Wanted, proof: ScanPage) -> bool:
    """Tell whether the scan's own bytes are the picture."""
    return page.clip is None and page.rotate == 0 and proof.header.width * proof.header.height <= raster.PIXELS_LIMIT


def _native_dpi(proof: ScanPage, box: PageBox) -> float:
    return proof.header.width / box.width * 72


def _decoded(proof: ScanPage, box: PageBox, dpi: float) -> codec.Pixels:
    """Decode a scan at the wanted resolution or just above, never above its own."""
    width, height = round(box.width / 72 * dpi), round(box.height / 72 * dpi)
    if width >= proof.header.width:
        return codec.decode(proof.data, is_grey=proof.is_grey)
    pixels = codec.decode(proof.data, min_width=width, min_height=height, is_grey=proof.is_grey)
    return codec.resized(pixels, width, height) if pixels.shape[1] > 1.2 * width else pixels


def _picture(workdir: Path, name: str, source: _Source, page: _Wanted, find_blank: bool) -> dict[str, Any]:
    """Write one picture and, when asked, its masked twin."""
    proof = source.proof
    blank: bool | None = None
    if proof is not None and _is_verbatim(page, proof):
        data, width, height = proof.data, proof.header.width, proof.header.height
        resolution = _native_dpi(proof, source.box)
        if find_blank:
            blank = codec.is_blank(codec.decode(data, min_height=_blank_rows(height), is_grey=True))
        burnt = codec.decode(data, is_grey=proof.is_grey) if page.mask else None
    else:
        assert source.pixels is not None
        pixels = source.pixels if page.clip is None else codec.cropped(source.pixels, page.clip)
        burnt = pixels = codec.turned(pixels, page.rotate)
        data, (height, width), resolution = codec.encode(pixels), pixels.shape[:2], source.dpi
        blank = codec.is_blank(pixels)
    result = {
        "index": page.index,
        "ok": True,
        **_stored(workdir / f"{name}.jpg", data),
        "width": width,
        "height": height,
        "mime": "image/jpeg",
        "verbatim": proof is not None and data is proof.data,
        "dpi": round(resolution, 1),
        "scaled_down": source.is_scaled_down,
        "is_blank": blank,
    }
    if page.mask and burnt is not None:
        covered = codec.encode(codec.masked(burnt, page.mask), codec.MASK_QUALITY)
        stored = _stored(workdir / f"{name}-masked.jpg", covered)
        result |= {f"masked_{key}": value for key, value in stored.items()}
    return result


def _blank_rows(height: int) -> int:
    """Choose how small a scan may be decoded for the blank test: an eighth, but not under 300 rows."""
    return min(height, max(300, height // 8))


def _stored(path: Path, data: bytes) -> dict[str, Any]:
    path.write_bytes(data)
    return {"file": path.name, "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def _is_grey(page: pikepdf.Dictionary) -> bool:
    """Tell whether a page certainly has no colour: nothing on it but images in grey or black and white."""
    resources = page.get("/Resources")
    if not isinstance(resources, pikepdf.Dictionary) or "/Annots" in page:
        return False
    if {"/Font", "/Pattern", "/Shading", "/ColorSpace"} & set(resources.keys()):
        return False
    drawings = resources.get("/XObject")
    if not isinstance(drawings, pikepdf.Dictionary) or not len(drawings):
        return False
    return all(
        isinstance(item, pikepdf.Stream)
        and str(item.stream_dict.get("/Subtype", "")) == "/Image"
        and str(item.stream_dict.get("/ColorSpace", "")) == "/DeviceGray"
        for item in drawings.values()
    )


def warm_up() -> None:
    """Load before the sandbox closes what the libraries load when first used."""
    blank = np.full((64, 64, 3), 255, dtype=np.uint8)
    codec.resized(codec.decode(codec.encode(blank)), 32, 32)
    codec.encode_lossless(blank)
    codec.is_blank(blank)
    document = pypdfium2.PdfDocument.new()
    document.new_page(72, 72).render(scale=1).to_numpy()
    document.close()
