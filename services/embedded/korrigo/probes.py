"""Questions whose answer is "ready", asked by the supervisor without any library.

Each returns at once or within half a second and never raises, because the supervisor has one thread.
"""

from __future__ import annotations

import socket
import struct
from pathlib import Path

from korrigo_kit.addresses import in_url

_PATIENCE_SECONDS = 0.5
# Protocol 3.0 (PostgreSQL documentation, "Message Formats", StartupMessage).
_PROTOCOL = 196608


def answers_sql(server: Path, user: str, database: str) -> bool:
    """Tell whether PostgreSQL behind this socket lets sessions begin (it asks for the password)."""
    body = struct.pack("!i", _PROTOCOL)
    body += b"".join(text.encode() + b"\0" for text in ("user", user, "database", database, ""))
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_PATIENCE_SECONDS)
            connection.connect(str(server))
            connection.sendall(struct.pack("!i", len(body) + 4) + body)
            # "R" = authentication request; "E" while it starts, recovers or stops. Read whole: bytes left unread
            # would make the kernel reset the connection, and the server log it.
            return connection.recv(1024)[:1] == b"R"
    except OSError:
        return False


def answers_http(host: str, port: int, path: str) -> bool:
    """Tell whether GET answers 200."""
    request = f"GET {path} HTTP/1.1\r\nHost: {in_url(host)}:{port}\r\nConnection: close\r\n\r\n"
    try:
        with socket.create_connection((host, port), timeout=_PATIENCE_SECONDS) as connection:
            # The first answer of a cold process may take longer than a connection.
            connection.settimeout(4 * _PATIENCE_SECONDS)
            connection.sendall(request.encode())
            return connection.recv(12).startswith(b"HTTP/1.1 200")
    except OSError:
        return False
