"""PDFs for drills, written by hand: honest ones, broken ones, and honest ones that want much memory.

The front door holds no PDF library (house rule), and these need none.
"""

from __future__ import annotations

import random
import re
import zlib

A4 = "[0 0 595.28 841.89]"
# A JPEG in one of our own samples, whose writer puts the entries in this order.
_PICTURE = re.compile(
    rb"/DCTDecode /Height (?P<height>\d+) [^>]*?/Width (?P<width>\d+) /Length (?P<length>\d+) >>\nstream\n"
)


def _pdf(objects: list[bytes]) -> bytes:
    """Put numbered objects together, the catalogue first, with a right cross-reference table."""
    out = bytearray(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n")
    starts = []
    for number, body in enumerate(objects, 1):
        starts.append(len(out))
        out += b"%d 0 obj\n" % number + body + b"\nendobj\n"
    table = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % start for start in starts)
    out += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, table)
    return bytes(out)


def _stream(data: bytes, entries: str = "") -> bytes:
    return f"<< /Length {len(data)} {entries} >>\nstream\n".encode() + data + b"\nendstream"


def scan(pages: int, mark: str, *, padding_megabytes: int = 0) -> bytes:
    """Make a plain scan; `mark` is written on every page and makes the bytes its own.

    `padding_megabytes` of white space before the text of page 1 are small in the file and large once unpacked.
    """
    kids = " ".join(f"{4 + 2 * page} 0 R" for page in range(pages))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Count {pages} /Kids [{kids}] >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for page in range(pages):
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox {A4} /Resources << /Font << /F1 3 0 R >> >>"
            f" /Contents {5 + 2 * page} 0 R >>".encode()
        )
        text = f"BT /F1 24 Tf 72 420 Td ({mark}, page {page + 1}) Tj ET 60 60 475 300 re S".encode()
        padding = b" " * (padding_megabytes << 20) if page == 0 else b""
        objects.append(_stream(zlib.compress(padding + text, 9), "/Filter /FlateDecode"))
    return _pdf(objects)


def photographed(sample: bytes, pages: int, mark: str) -> bytes:
    """Make a scan of pictures as scanners make them, of the JPEGs in a sample; no two pages have the same bytes."""
    found = [
        (int(hit["width"]), int(hit["height"]), sample[hit.end() : hit.end() + int(hit["length"])])
        for hit in _PICTURE.finditer(sample)
    ]
    kids = " ".join(f"{3 + 3 * page} 0 R" for page in range(pages))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Count {pages} /Kids [{kids}] >>".encode(),
    ]
    for page in range(pages):
        width, height, jpeg = found[page % len(found)]
        remark = f"{mark}, page {page + 1}".encode()
        picture = jpeg[:2] + b"\xff\xfe" + (len(remark) + 2).to_bytes(2, "big") + remark + jpeg[2:]
        entries = f"/Type /XObject /Subtype /Image /Width {width} /Height {height} /BitsPerComponent 8"
        objects += [
            f"<< /Type /Page /Parent 2 0 R /MediaBox {A4} /Resources << /XObject << /Scan {5 + 3 * page} 0 R >> >>"
            f" /Contents {4 + 3 * page} 0 R >>".encode(),
            _stream(b"595.28 0 0 841.89 0 0 cm /Scan Do"),
            _stream(picture, f"{entries} /ColorSpace /DeviceGray /Filter /DCTDecode"),
        ]
    return _pdf(objects)


def broken(seed: int) -> bytes:
    """Make what a copier leaves whose disk was full: the right beginning, then noise, and no end."""
    return b"%PDF-1.4\n" + random.Random(seed).randbytes(2000)  # noqa: S311 - noise, no secret
