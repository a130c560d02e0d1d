"""Carries connections from the machine's loopback into the cluster's network, which nothing else connects.

Run by `cluster.first_process` as `python -m cluster.forwarder FOLDER FD=NAME ...`. The listening sockets were opened
outside, before the network namespace was made, and a socket stays in the namespace where it was opened; the connections
onward are made here, inside. FOLDER/NAME holds the address, HOST:PORT, and may be written and changed at any time.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import sys
from pathlib import Path

_CHUNK = 1 << 16
CONNECT_SECONDS = 5


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while chunk := await source.read(_CHUNK):
        sink.write(chunk)
        await sink.drain()
    # half a connection may end: kubectl exec ends its input and goes on reading
    if sink.can_write_eof():
        sink.write_eof()


async def _connect(target: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
    try:
        host, _, port = target.read_text().strip().rpartition(":")
        return await asyncio.wait_for(asyncio.open_connection(host, int(port)), CONNECT_SECONDS)
    except (OSError, ValueError, TimeoutError) as error:
        # nothing there (yet): the caller sees its connection end, as from any port that nobody serves
        print(f"{target.name}: {error!r}", flush=True)
        return None


async def _carry(target: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    onward = await _connect(target)
    open_streams = [writer]
    try:
        if onward is not None:
            open_streams.append(onward[1])
            # the first side that breaks ends both, or the other would wait for nobody
            with contextlib.suppress(OSError):
                await asyncio.gather(_pump(reader, onward[1]), _pump(onward[0], writer))
    finally:
        for stream in open_streams:
            stream.close()
            with contextlib.suppress(OSError):
                await stream.wait_closed()


async def _serve(folder: Path, listeners: list[str]) -> None:
    servers = []
    for listener in listeners:
        fd, _, name = listener.partition("=")
        carry = functools.partial(_carry, folder / name)
        servers.append(await asyncio.start_server(carry, sock=socket.socket(fileno=int(fd))))
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), sys.argv[2:]))
