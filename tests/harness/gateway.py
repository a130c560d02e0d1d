"""A path-prefix gateway in front of the rooms, as the Gateway API's HTTPRoute is in Kubernetes.

Run as a process of its own by `harness.instance.Production`: `python -m harness.gateway PORT PREFIX=PORT ...`, the
longest prefix wins. One request per connection; both bodies are streamed as they come, so that a broken connection
behind looks broken in front, and nothing is retried here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Sequence

_CHUNK = 1 << 16
_HEAD_LIMIT = 1 << 16


class Routes:
    """Which port answers a path."""

    def __init__(self, routes: Sequence[tuple[str, int]]) -> None:
        self._routes = sorted(routes, key=lambda route: -len(route[0]))

    def port(self, path: str) -> int:
        """Return the port of the longest prefix that matches whole path segments."""
        for prefix, port in self._routes:
            if prefix == "/" or path == prefix or path.startswith(prefix + "/"):
                return port
        raise LookupError(path)


def _rewrite(head: bytes) -> bytes:
    lines = head.split(b"\r\n")
    kept = [line for line in lines[1:] if line and not line.lower().startswith((b"connection:", b"keep-alive:"))]
    return b"\r\n".join([lines[0], *kept, b"Connection: close", b"", b""])


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while chunk := await source.read(_CHUNK):
        sink.write(chunk)
        await sink.drain()


async def _answer(upstream: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
    while True:
        head = await upstream.readuntil(b"\r\n\r\n")
        is_interim = head.split(b" ", 2)[1].startswith(b"1")
        client.write(head if is_interim else _rewrite(head))
        if not is_interim:
            return await _pump(upstream, client)


async def _refuse(client: asyncio.StreamWriter) -> None:
    body = json.dumps({"status": 502, "reason": "ROOM_UNREACHABLE", "title": "Bad Gateway"}).encode()
    client.write(
        b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: application/problem+json\r\nConnection: close\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    await client.drain()


async def _connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
    try:
        return await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return None


async def _serve(routes: Routes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        path = head.split(b" ", 2)[1].split(b"?", 1)[0].decode("latin-1")
        opened = await _connect(routes.port(path))
        if opened is None:
            return await _refuse(writer)
        upstream_reader, upstream = opened
        upstream.write(_rewrite(head))
        upload = asyncio.create_task(_pump(reader, upstream))
        try:
            await _answer(upstream_reader, writer)
        finally:
            upload.cancel()
            await asyncio.gather(upload, return_exceptions=True)
            upstream.close()
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        writer.transport.abort()  # a broken answer must not look like a short one
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def serve(port: int, routes: Routes) -> None:
    """Serve for ever on a loopback port."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _serve(routes, reader, writer)

    server = await asyncio.start_server(handle, "127.0.0.1", port, limit=_HEAD_LIMIT)
    async with server:
        await server.serve_forever()


def main(arguments: Sequence[str]) -> None:
    """Parse PORT PREFIX=PORT... and serve."""
    pairs = [argument.rpartition("=") for argument in arguments[1:]]
    asyncio.run(serve(int(arguments[0]), Routes([(prefix, int(port)) for prefix, _, port in pairs])))


if __name__ == "__main__":
    main(sys.argv[1:])
