"""How two hosts of one model say something to each other, so that nobody else is believed.

    head      → follower   32 random bytes                 a connection is worth as much as what answers them
    follower  →            32 random bytes
    both      ↔            length, HMAC, text              as often as they like

The HMAC is over direction, number and text, by a key made of the group's and of both random words: what was recorded
once is worth nothing in another connection, at another place, or the other way. Nothing is read that is not true.
Stdlib only.
"""

from __future__ import annotations

import hmac
import json
import secrets
import socket
import time
from typing import Any

WORD, MAC, LENGTH = 32, 32, 4  # bytes
LONGEST = 4096


class Broken(Exception):
    """A connection that is at its end, or that somebody is at who has not got the key."""


class Channel:
    """One connection. `name` is who is at the other end, as far as it is known."""

    def __init__(self, connection: socket.socket, key: bytes, *, is_head: bool) -> None:
        self.connection, self.is_head, self._group_key = connection, is_head, key
        self.name, self.rank, self.epoch = "somebody", 0, ""
        self.is_welcome = self.is_refused = False
        self.opened_at = self.heard_at = time.monotonic()
        self._mine, self._theirs = secrets.token_bytes(WORD), b""
        self._key = b""
        self._sent = self._read = 0
        self._buffer = b""
        connection.setblocking(False)
        if is_head:
            self._write(self._mine)

    def read(self) -> list[dict[str, Any]]:
        """What has come whole, in order; raises Broken at the end, and at the first byte that is not true."""
        ended = False
        try:
            data = self.connection.recv(65536)
            ended = not data
            self._buffer += data
        except BlockingIOError:
            pass
        except OSError as error:
            raise Broken(error.strerror or "the connection is at its end") from None
        found = list(iter(self._next, None))
        if ended and not found:
            raise Broken("it has closed the connection")
        return found

    def _next(self) -> dict[str, Any] | None:
        if not self._theirs:
            if len(self._buffer) < WORD:
                return None
            self._theirs, self._buffer = self._buffer[:WORD], self._buffer[WORD:]
            words = self._mine + self._theirs if self.is_head else self._theirs + self._mine
            self._key = hmac.digest(self._group_key, b"vllm group 1" + words, "sha256")
            if not self.is_head:
                self._write(self._mine)
        if len(self._buffer) < LENGTH:
            return None
        size = int.from_bytes(self._buffer[:LENGTH], "big")
        if size > LONGEST:
            raise Broken("it does not speak as a member does")
        if len(self._buffer) < LENGTH + MAC + size:
            return None
        mac, text = self._buffer[LENGTH : LENGTH + MAC], self._buffer[LENGTH + MAC : LENGTH + MAC + size]
        if not hmac.compare_digest(mac, self._mac(text, self._read, of_head=not self.is_head)):
            raise Broken("it has not got the group's key")
        self._buffer, self._read = self._buffer[LENGTH + MAC + size :], self._read + 1
        self.heard_at = time.monotonic()
        found = json.loads(text)
        return found if isinstance(found, dict) else {}

    @property
    def is_keyed(self) -> bool:
        return bool(self._key)

    def send(self, what: str, **more: object) -> None:
        text = json.dumps({"is": what, **more}).encode()
        mac = self._mac(text, self._sent, of_head=self.is_head)
        self._sent += 1
        self._write(len(text).to_bytes(LENGTH, "big") + mac + text)

    def _mac(self, text: bytes, number: int, *, of_head: bool) -> bytes:
        where = (b"head" if of_head else b"tail") + number.to_bytes(8, "big")
        return hmac.digest(self._key, where + text, "sha256")

    def _write(self, data: bytes) -> None:
        """What is said is short: who leaves so much unread that it does not fit is not there any more."""
        try:
            if self.connection.send(data) != len(data):
                raise Broken("it does not read")
        except OSError as error:
            raise Broken(error.strerror or "it does not read") from None

    def silent_for(self) -> float:
        return time.monotonic() - self.heard_at
