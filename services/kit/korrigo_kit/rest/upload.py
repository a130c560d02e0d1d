"""Multipart uploads, streamed to disk with constant memory and hashed on the way."""

from __future__ import annotations

import errno
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from korrigo_kit.errors import Exhausted, Invalid, TooLarge, Unparsable, Unsupported
from korrigo_kit.rest import edge

_HEADER_LIMIT = 8192


@dataclass(frozen=True, slots=True)
class Upload:
    """A received file: where it lies, how the client called it, its size in bytes and its sha256."""

    path: Path
    filename: str
    size: int
    sha256: str


class _Receiver:
    """Callbacks of the multipart parser; keeps only the named part."""

    def __init__(self, field: str, target: BinaryIO, max_bytes: int) -> None:
        self._field = field
        self._target = target
        self._max_bytes = max_bytes
        self._header = bytearray()
        self._value = bytearray()
        self._headers: dict[str, str] = {}
        self._is_wanted = False
        self._hash = hashlib.sha256()
        self.size = 0
        self.filename: str | None = None

    def on_part_begin(self) -> None:
        self._headers = {}
        self._is_wanted = False

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]
        self._limit_headers()

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._limit_headers()

    def _limit_headers(self) -> None:
        if len(self._header) + len(self._value) > _HEADER_LIMIT:
            raise Unparsable("INVALID_MULTIPART", "a part's headers are too long")

    def on_header_end(self) -> None:
        self._headers[self._header.decode("latin-1").lower()] = self._value.decode("utf-8", "replace")
        self._header.clear()
        self._value.clear()

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get("content-disposition", ""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name != self._field or b"filename" not in options:
            return
        if self.filename is not None:
            raise Invalid("ONE_FILE_ONLY", f"send one part named `{self._field}`")
        self._is_wanted = True
        self.filename = options[b"filename"].decode("utf-8", "replace")[:255]

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if not self._is_wanted:
            return
        chunk = data[start:end]
        self.size += len(chunk)
        if self.size > self._max_bytes:
            raise TooLarge("FILE_TOO_LARGE", "the file is too large", max_bytes=self._max_bytes)
        self._hash.update(chunk)
        try:
            self._target.write(chunk)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise Exhausted("DISK_FULL", "no room for the upload", status=507) from error
            raise

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


async def receive_upload(request: Request, *, field: str, path: Path, max_bytes: int) -> Upload:
    """Stream the part `field` of a multipart request into `path`.

    Raises Unsupported (415) for another content type, TooLarge (413 FILE_TOO_LARGE), Unparsable (400
    INVALID_MULTIPART), Invalid (422 FILE_MISSING), Exhausted (507 DISK_FULL).
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data":
        raise Unsupported("UNSUPPORTED_MEDIA_TYPE", "send the file as multipart/form-data")
    boundary = options.get(b"boundary")
    if not boundary:
        raise Unparsable("INVALID_MULTIPART", "the multipart boundary is missing")
    request.scope[edge.ALLOW_BODY](max_bytes)
    with path.open("wb") as target:
        receiver = _Receiver(field, target, max_bytes)
        try:
            parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": receiver.on_part_begin,
                    "on_part_data": receiver.on_part_data,
                    "on_header_field": receiver.on_header_field,
                    "on_header_value": receiver.on_header_value,
                    "on_header_end": receiver.on_header_end,
                    "on_headers_finished": receiver.on_headers_finished,
                },
            )
            async for chunk in request.stream():
                parser.write(chunk)
            parser.finalize()
        except FormParserError:
            raise Unparsable("INVALID_MULTIPART", "the multipart body cannot be read") from None
    if receiver.filename is None:
        raise Invalid("FILE_MISSING", f"send one part named `{field}` with a file")
    return Upload(path, receiver.filename, receiver.size, receiver.sha256)
