"""The typefaces of the final PDF: measuring, encoding, and embedding only the glyphs that were drawn.

Called by `canvas` (measure, encode) and `append` (embed). Our own slicing of the shipped subsets
(fonts/generate.py flattens and unhints them) takes microseconds where a general subsetter takes tens of
milliseconds; the output is a plain CIDFontType2 with Identity-H and a ToUnicode map, so text stays searchable.
"""

from __future__ import annotations

import functools
import struct
import zlib
from pathlib import Path

from korrigo_render.engine.update import Update

FONTS = Path(__file__).with_name("fonts")
_NOTDEF = 0


class _Advances(dict[str, int]):
    """Advance widths by character; what has no glyph is as wide as the box drawn for it."""

    missing = 0

    def __missing__(self, character: str) -> int:
        return self.missing


class _Codes(dict[str, str]):
    """New glyph numbers (hexadecimal) by character, given in the order of first use; 0 stays .notdef."""

    def __missing__(self, character: str) -> str:
        self[character] = code = f"{len(self) + 1:04X}"
        return code


class Face:
    """One shipped TrueType subset, parsed once per process and never changed."""

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self._data = path.read_bytes()
        (count,) = struct.unpack_from(">H", self._data, 4)
        self._tables: dict[str, tuple[int, int]] = {}
        for i in range(count):
            tag, _, offset, length = struct.unpack_from(">4sLLL", self._data, 12 + 16 * i)
            self._tables[tag.decode()] = (offset, length)
        head = self.table("head")
        self.units: int = struct.unpack_from(">H", head, 18)[0]
        self.bbox: tuple[int, int, int, int] = struct.unpack_from(">4h", head, 36)
        (long_loca,) = struct.unpack_from(">h", head, 50)
        hhea = self.table("hhea")
        self.ascent, self.descent = struct.unpack_from(">hh", hhea, 4)
        (self._metrics_count,) = struct.unpack_from(">H", hhea, 34)
        (glyphs,) = struct.unpack_from(">H", self.table("maxp"), 4)
        loca = self.table("loca")
        form = f">{glyphs + 1}{'L' if long_loca else 'H'}"
        self._loca: list[int] = [v if long_loca else 2 * v for v in struct.unpack_from(form, loca)]
        self._hmtx = self.table("hmtx")
        self._glyf_at = self._tables["glyf"][0]
        self.glyph_of = self._read_cmap()
        self._advances = _Advances((chr(code), self.metrics(gid)[0]) for code, gid in self.glyph_of.items())
        self._advances.missing = self.metrics(_NOTDEF)[0]
        self._characters = frozenset(self._advances)

    def table(self, tag: str) -> bytes:
        """Return the bytes of a table."""
        offset, length = self._tables[tag]
        return self._data[offset : offset + length]

    def _read_cmap(self) -> dict[int, int]:
        cmap = self.table("cmap")  # one subtable of format 12: generate.py makes it so
        (at,) = struct.unpack_from(">L", cmap, 8)
        (groups,) = struct.unpack_from(">L", cmap, at + 12)
        found: dict[int, int] = {}
        for i in range(groups):
            first, last, gid = struct.unpack_from(">LLL", cmap, at + 16 + 12 * i)
            found.update(zip(range(first, last + 1), range(gid, gid + last - first + 1), strict=True))
        return found

    def metrics(self, gid: int) -> tuple[int, int]:
        """Return (advance, left side bearing) of a glyph in font units."""
        if gid < self._metrics_count:
            advance, bearing = struct.unpack_from(">Hh", self._hmtx, 4 * gid)
            return advance, bearing
        (advance,) = struct.unpack_from(">H", self._hmtx, 4 * (self._metrics_count - 1))
        at = 4 * self._metrics_count + 2 * (gid - self._metrics_count)
        (bearing,) = struct.unpack_from(">h", self._hmtx, at)
        return advance, bearing

    def outline(self, gid: int) -> bytes:
        """Return the glyf entry of a glyph, empty for a blank."""
        return self._data[self._glyf_at + self._loca[gid] : self._glyf_at + self._loca[gid + 1]]

    def glyph_box(self, character: str) -> tuple[float, float, float, float]:
        """Return x0, y0, x1, y1 of the drawn shape of a character, in em; y up."""
        outline = self.outline(self.glyph_of.get(ord(character), _NOTDEF))
        if not outline:
            return 0.0, 0.0, 0.0, 0.0
        x0, y0, x1, y1 = struct.unpack_from(">4h", outline, 2)
        return x0 / self.units, y0 / self.units, x1 / self.units, y1 / self.units

    def covers(self, text: str) -> bool:
        """Tell whether every character has a glyph."""
        return self._characters.issuperset(text)

    def width(self, text: str) -> float:
        """Return the width of one line of text, in em."""
        return sum(map(self._advances.__getitem__, text)) / self.units


@functools.cache
def faces() -> tuple[Face, Face]:
    """Return the regular and the bold face; parsed on first use, meant to happen in the zygote."""
    return Face(FONTS / "sans.ttf", "DejaVuSans"), Face(FONTS / "bold.ttf", "DejaVuSans-Bold")


class Embedded:
    """A face inside one PDF: gives glyphs new numbers in the order of first use and writes the subset."""

    def __init__(self, face: Face) -> None:
        self.face = face
        self._codes = _Codes()

    @property
    def is_used(self) -> bool:
        """Tell whether anything was set in this face."""
        return bool(self._codes)

    def encode(self, line: str) -> str:
        """Return the hexadecimal string operand that shows `line`."""
        return "".join(map(self._codes.__getitem__, line))

    def write(self, update: Update, number: int) -> None:
        """Write the font and what it needs; `number` is the object number that resources already name."""
        descendant, descriptor, program, to_unicode = (update.reserve() for _ in range(4))
        name = f"{self._tag()}+{self.face.name}"
        scale = 1000 / self.face.units
        widths = " ".join(str(round(w * scale)) for w, _ in self._all_metrics())
        x0, y0, x1, y1 = (round(v * scale) for v in self.face.bbox)
        update.put(
            number,
            f"<</Type/Font/Subtype/Type0/BaseFont/{name}/Encoding/Identity-H"
            f"/DescendantFonts[{descendant} 0 R]/ToUnicode {to_unicode} 0 R>>",
        )
        update.put(
            descendant,
            f"<</Type/Font/Subtype/CIDFontType2/BaseFont/{name}/CIDToGIDMap/Identity/DW 600/W[0[{widths}]]"
            f"/CIDSystemInfo<</Registry(Adobe)/Ordering(Identity)/Supplement 0>>/FontDescriptor {descriptor} 0 R>>",
        )
        update.put(
            descriptor,
            f"<</Type/FontDescriptor/FontName/{name}/Flags 4/FontBBox[{x0} {y0} {x1} {y1}]/ItalicAngle 0"
            f"/Ascent {round(self.face.ascent * scale)}/Descent {round(self.face.descent * scale)}"
            f"/CapHeight 729/StemV {120 if 'Bold' in name else 80}/FontFile2 {program} 0 R>>",
        )
        data = self._program()
        update.put_stream(program, f"/Length1 {len(data)}", data)
        update.put_stream(to_unicode, "", self._to_unicode())

    def _tag(self) -> str:
        """Return the six letters that mark a subset, from the glyphs in it (two subsets must differ)."""
        value = zlib.crc32("".join(self._codes).encode())
        return "".join(chr(65 + (value // 26**i) % 26) for i in range(6))

    def _glyphs(self) -> list[int]:
        return [_NOTDEF, *(self.face.glyph_of.get(ord(c), _NOTDEF) for c in self._codes)]

    def _all_metrics(self) -> list[tuple[int, int]]:
        return [self.face.metrics(gid) for gid in self._glyphs()]

    def _to_unicode(self) -> bytes:
        pairs = [f"<{code}><{c.encode('utf-16-be').hex()}>" for c, code in self._codes.items()]
        blocks = []
        for at in range(0, len(pairs), 100):  # the format allows 100 entries a block
            block = pairs[at : at + 100]
            blocks.append(f"{len(block)} beginbfchar\n" + "\n".join(block) + "\nendbfchar\n")
        return (
            "/CIDInit/ProcSet findresource begin\n12 dict begin\nbegincmap\n"
            "/CIDSystemInfo<</Registry(Adobe)/Ordering(UCS)/Supplement 0>>def\n"
            "/CMapName/Adobe-Identity-UCS def\n/CMapType 2 def\n"
            "1 begincodespacerange\n<0000><FFFF>\nendcodespacerange\n"
            + "".join(blocks)
            + "endcmap\nCMapName currentdict/CMap defineresource pop\nend\nend\n"
        ).encode()

    def _program(self) -> bytes:
        outlines = [self.face.outline(gid) for gid in self._glyphs()]
        offsets = [0]
        for outline in outlines:
            offsets.append(offsets[-1] + len(outline) + (-len(outline) % 4))
        metrics = self._all_metrics()
        head = bytearray(self.face.table("head"))
        struct.pack_into(">L", head, 8, 0)
        struct.pack_into(">h", head, 50, 1)
        hhea = bytearray(self.face.table("hhea"))
        struct.pack_into(">H", hhea, 34, len(metrics))
        maxp = bytearray(self.face.table("maxp"))
        struct.pack_into(">H", maxp, 4, len(metrics))
        return _sfnt(
            {
                b"glyf": b"".join(o + b"\0" * (-len(o) % 4) for o in outlines),
                b"head": bytes(head),
                b"hhea": bytes(hhea),
                b"hmtx": b"".join(struct.pack(">Hh", *m) for m in metrics),
                b"loca": struct.pack(f">{len(offsets)}L", *offsets),
                b"maxp": bytes(maxp),
            }
        )


def _checksum(data: bytes) -> int:
    padded = data + b"\0" * (-len(data) % 4)
    words: tuple[int, ...] = struct.unpack(f">{len(padded) // 4}L", padded)
    return sum(words) & 0xFFFFFFFF


def _sfnt(tables: dict[bytes, bytes]) -> bytes:
    """Assemble a TrueType file from tables in tag order, with valid checksums."""
    count = len(tables)
    power = 1 << (count.bit_length() - 1)
    directory = struct.pack(">LHHHH", 0x00010000, count, power * 16, power.bit_length() - 1, (count - power) * 16)
    at = 12 + 16 * count
    body = b""
    head_at = 0
    for tag, data in tables.items():
        if tag == b"head":
            head_at = at
        directory += tag + struct.pack(">LLL", _checksum(data), at, len(data))
        padded = data + b"\0" * (-len(data) % 4)
        body += padded
        at += len(padded)
    whole = bytearray(directory + body)
    struct.pack_into(">L", whole, head_at + 8, (0xB1B0AFBA - _checksum(bytes(whole))) & 0xFFFFFFFF)
    return bytes(whole)
