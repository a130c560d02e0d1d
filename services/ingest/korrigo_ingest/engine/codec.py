"""Pixels in and out: JPEG by libjpeg-turbo, scaled while decoding where that is possible; blank pages; masks.

Rendered pages are kept as JPEG, quality 80, without colour subsampling: red ink hairlines survive it
(performance.md a.3).
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
"""Rows x columns (grey) or rows x columns x 3 (RGB)."""

QUALITY = 80
MASK_QUALITY = 90
"""A masked picture may be a second generation of a scan's JPEG, so it is written finer."""
MASK_GREY = 0xD8

_BLANK_HEIGHT = 300
_BLANK_MARGIN = 0.04
_BLANK_CONTRAST = 28
_BLANK_FRACTION = 0.00012


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """What the header of a JPEG says."""

    width: int
    height: int
    components: int


def read_header(data: bytes) -> JpegHeader | None:
    """Read a JPEG's header; None when it is no JPEG that libjpeg-turbo decodes to grey or RGB."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    components = {"Gray": 1, "YCbCr": 3, "RGB": 3}.get(colorspace)
    return JpegHeader(width, height, components) if components else None


def decode(data: bytes, *, min_width: int = 0, min_height: int = 0, is_grey: bool = False) -> Pixels:
    """Decode a JPEG, scaled down by the DCT as far as the sides stay at least as asked. Raises ValueError."""
    options: dict[str, Any] = {"colorspace": "GRAY" if is_grey else "RGB"}
    if min_width or min_height:
        options |= {"min_width": min_width, "min_height": min_height}
    pixels: Pixels = simplejpeg.decode_jpeg(data, strict=False, **options)
    return pixels[:, :, 0] if is_grey else pixels


def encode(pixels: Pixels, quality: int = QUALITY) -> bytes:
    """Encode grey or RGB pixels."""
    is_grey = pixels.ndim == 2
    data: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels[:, :, None] if is_grey else pixels),
        quality=quality,
        colorspace="GRAY" if is_grey else "RGB",
        colorsubsampling="Gray" if is_grey else "444",
    )
    return data


def encode_lossless(pixels: Pixels) -> tuple[bytes, int]:
    """Compress pixels as a PDF stream of /FlateDecode with PNG predictors: its bytes and number of colours."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=4)
    return _idat(buffer.getvalue()), 1 if pixels.ndim == 2 else 3


def _idat(png: bytes) -> bytes:
    """Take the compressed rows out of a PNG file; they are what /Predictor 15 reads."""
    parts, position = [], 8
    while position < len(png):
        length = int.from_bytes(png[position : position + 4], "big")
        if png[position + 4 : position + 8] == b"IDAT":
            parts.append(png[position + 8 : position + 8 + length])
        position += 12 + length
    return b"".join(parts)


def resized(pixels: Pixels, width: int, height: int) -> Pixels:
    """Scale to an exact size."""
    if (pixels.shape[1], pixels.shape[0]) == (width, height):
        return pixels
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0), dtype=np.uint8)


def turned(pixels: Pixels, degrees: int) -> Pixels:
    """Turn clockwise by quarter turns."""
    return np.rot90(pixels, k=-(degrees // 90) % 4) if degrees % 360 else pixels


def cropped(pixels: Pixels, clip: tuple[float, float, float, float]) -> Pixels:
    """Cut out a part given in fractions; neighbours share their edge, so no column is lost or doubled."""
    height, width = pixels.shape[:2]
    x0, y0, x1, y1 = clip
    left, right = round(x0 * width), max(round(x1 * width), round(x0 * width) + 1)
    top, bottom = round(y0 * height), max(round(y1 * height), round(y0 * height) + 1)
    return pixels[top:bottom, left:right]


def masked(pixels: Pixels, top: float) -> Pixels:
    """Paint over the top part (a fraction of the height) for good."""
    copy = pixels.copy()
    copy[: round(top * pixels.shape[0])] = MASK_GREY
    return copy


def is_blank(pixels: Pixels) -> bool:
    """Tell whether a page bears no ink; conservative: ruling and bleed-through are paper, one word is not.

    A mark is a pixel, after reduction to 300 rows, clearly darker than the paper around it. What stays after leaving
    out the margins (scanner edges, fold) and long straight lines (ruling) must be next to nothing.
    """
    grey = pixels if pixels.ndim == 2 else pixels[:, :, 1]
    height = _BLANK_HEIGHT
    width = max(1, round(grey.shape[1] * height / grey.shape[0]))
    image = Image.fromarray(np.ascontiguousarray(grey))
    small = np.asarray(image.resize((width, height), Image.Resampling.BOX, reducing_gap=1.0), dtype=np.int16)
    dx, dy = max(1, round(width * _BLANK_MARGIN)), round(height * _BLANK_MARGIN)
    inner = small[dy:-dy, dx:-dx]
    if inner.size == 0:
        return False
    # a row's or column's median takes ruling and shading with it
    rows = np.median(inner, axis=1, keepdims=True)
    columns = np.median(inner - rows, axis=0, keepdims=True)
    marks = (rows + columns - inner) > _BLANK_CONTRAST
    return bool(marks.mean() < _BLANK_FRACTION)
