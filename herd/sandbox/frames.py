"""The protocol between client and warden: a length, then JSON. Data from a box is never unpickled."""

from __future__ import annotations

import json
import socket
import struct
from typing import Any


def send(channel: socket.socket, message: dict[str, Any]) -> None:
    """Send one message."""
    data = json.dumps(message).encode()
    channel.sendall(struct.pack("=Q", len(data)) + data)


def receive(channel: socket.socket) -> dict[str, Any] | None:
    """The next message; None if the other side has closed."""
    head = _exactly(channel, 8)
    body = _exactly(channel, struct.unpack("=Q", head)[0]) if head else None
    return json.loads(body) if body else None


def _exactly(channel: socket.socket, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        piece = channel.recv(min(size - len(data), 1 << 20))
        if not piece:
            return None
        data += piece
    return bytes(data)
