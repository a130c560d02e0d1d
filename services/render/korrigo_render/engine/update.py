"""An incremental update of a PDF, written by hand: the source stays untouched and becomes the byte prefix.

Called by `append`. Holds new and changed objects, then writes them with a cross-reference section of the same
kind as the source's last one (ISO 32000-2, 7.5.6: a table may only follow tables, a stream only streams; a
hybrid file ends in a table, and ours comes first in the look-up, so it wins over the source's /XRefStm).
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

# Speed matters more than the last per cent here, and what is written is small.
_ZLIB_LEVEL = 6
_FREE = 65535  # the generation of an object number that is never to be used again
_LONGEST_PLAIN_STREAM = 60  # deflate makes shorter ones longer


@dataclass(frozen=True, slots=True)
class Tail:
    """What the update needs to know about the end of the source. Offsets count from the `%PDF-` header."""

    previous_xref_at: int
    is_xref_stream: bool
    next_number: int
    root: str
    info: str | None
    first_id: bytes | None
    header_at: int
    # Numbers below `next_number` that no section of the source lists, though some object refers to them; they are
    # declared free, because poppler rebuilds the whole table when one is used and not listed.
    unlisted: tuple[int, ...] = ()


class Update:
    """New objects (and new versions of old ones) to be appended."""

    def __init__(self, tail: Tail) -> None:
        self.tail = tail
        self._next = tail.next_number
        self.objects: dict[tuple[int, int], tuple[str, bytes | None]] = {}
        self._shared: dict[bytes, int] = {}

    def reserve(self) -> int:
        """Return a new object number; its generation is 0."""
        number = self._next
        self._next += 1
        return number

    def put(self, number: int, body: str, generation: int = 0) -> None:
        """Set an object that is not a stream."""
        self.objects[number, generation] = (body, None)

    def put_stream(self, number: int, entries: str, data: bytes) -> None:
        """Set a stream; `entries` are the dictionary's entries without /Length and /Filter."""
        if len(data) > _LONGEST_PLAIN_STREAM:
            packed = zlib.compress(data, _ZLIB_LEVEL)
            self.objects[number, 0] = (f"<<{entries}/Filter/FlateDecode/Length {len(packed)}>>", packed)
        else:
            self.objects[number, 0] = (f"<<{entries}/Length {len(data)}>>", data)

    def shared_stream(self, data: bytes) -> int:
        """Return the number of a stream with this content, made once."""
        if data not in self._shared:
            self._shared[data] = self.reserve()
            self.put_stream(self._shared[data], "", data)
        return self._shared[data]

    def write(self, source_size: int, source_sha256: str, *, ends_in_newline: bool) -> bytes:
        """Return the bytes to append to a source of `source_size` bytes."""
        out = bytearray(b"" if ends_in_newline else b"\n")
        start = source_size - self.tail.header_at
        offsets: dict[tuple[int, int], int] = {}
        for (number, generation), (body, data) in sorted(self.objects.items()):
            offsets[number, generation] = start + len(out)
            out += f"{number} {generation} obj\n{body}\n".encode("latin-1")
            if data is not None:
                out += b"stream\n" + data + b"\nendstream\n"
            out += b"endobj\n"
        xref_at = start + len(out)
        free = {*self.tail.unlisted, *range(self.tail.next_number, self._next)} - {number for number, _ in offsets}
        offsets |= {(number, _FREE): 0 for number in free}
        # The second half of /ID changes with every revision, as the format wants, and depends on nothing else.
        second = hashlib.sha256(source_sha256.encode() + bytes(out)).digest()[:16]
        first = self.tail.first_id or bytes.fromhex(source_sha256)[:16]
        ids = f"/ID[<{first.hex()}><{second.hex()}>]"
        out += self._xref_stream(offsets, xref_at, ids) if self.tail.is_xref_stream else self._table(offsets, ids)
        out += f"startxref\n{xref_at}\n%%EOF\n".encode()
        return bytes(out)

    def _trailer_entries(self, size: int, ids: str) -> str:
        info = f"/Info {self.tail.info}" if self.tail.info else ""
        return f"/Size {size}/Root {self.tail.root}{info}{ids}/Prev {self.tail.previous_xref_at}"

    def _table(self, offsets: dict[tuple[int, int], int], ids: str) -> bytes:
        lines = ["xref\n"]
        for first, run in _runs(offsets):
            lines.append(f"{first} {len(run)}\n")
            lines += [f"{offsets[key]:010d} {key[1]:05d} {'f' if key[1] == _FREE else 'n'} \n" for key in run]
        return ("".join(lines) + f"trailer\n<<{self._trailer_entries(self._next, ids)}>>\n").encode()

    def _xref_stream(self, offsets: dict[tuple[int, int], int], xref_at: int, ids: str) -> bytes:
        number = self._next
        all_offsets = {**offsets, (number, 0): xref_at}
        index = []
        rows = b""
        wide = 8 if xref_at > 0xFFFFFFFF else 4
        for first, run in _runs(all_offsets):
            index.append(f"{first} {len(run)}")
            for key in run:
                kind = b"\x00" if key[1] == _FREE else b"\x01"
                rows += kind + all_offsets[key].to_bytes(wide, "big") + struct.pack(">H", key[1])
        packed = zlib.compress(rows, _ZLIB_LEVEL)
        entries = (
            f"<</Type/XRef/W[1 {wide} 2]/Index[{' '.join(index)}]{self._trailer_entries(number + 1, ids)}"
            f"/Filter/FlateDecode/Length {len(packed)}>>"
        )
        return f"{number} 0 obj\n{entries}\nstream\n".encode() + packed + b"\nendstream\nendobj\n"


def _runs(offsets: dict[tuple[int, int], int]) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Yield (first number, keys) for every run of consecutive object numbers."""
    for _, group in groupby(enumerate(sorted(offsets)), key=lambda pair: pair[1][0] - pair[0]):
        run = [key for _, key in group]
        yield run[0][0], run
