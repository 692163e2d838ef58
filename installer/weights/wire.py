"""GET requests on connections that are kept, bytes straight into a buffer: a quarter of httpx's work for each byte.

Proxies come from the environment, trust from the hub client. A token goes to the server it is for and to no other.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import select
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from functools import cache
from types import TracebackType
from urllib.parse import SplitResult, unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from installer.base.errors import Exit, InstallError
from installer.base.language import tr

# A stalled connection is left after this many seconds and taken up again at the byte it had reached.
STALLED = 10.0
REDIRECTS = 10
SECRETS = ("authorization", "cookie")
LINGER = 0.2  # seconds for which small reads are gathered before they are handed on


class LineFault(Exception):
    """The connection could not be made, broke, or said what is not HTTP."""


class Response:
    """A response whose body is still to be read."""

    def __init__(self, response: http.client.HTTPResponse, url: str, line: _Line) -> None:
        self.status = response.status
        self.headers = response.headers
        self.url = url
        self.length = response.length  # of the body, where the server says it
        self._left = response.length
        self._response = response
        self._line = line

    def __enter__(self) -> Response:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Give the connection back where nothing is left on it."""
        is_done = self._response.isclosed() or self._left == 0
        self._response.close()
        if kind is not None or not is_done or self._response.will_close:
            self._line.close()

    def fill(self, into: memoryview) -> int:
        """Read until the buffer is full, the body ends, or nothing more comes for a moment."""
        filled = self._read(into)
        until = time.monotonic() + LINGER
        while 0 < filled < len(into) and self._left != 0 and self._line.has_more(until - time.monotonic()):
            try:
                count = self._read(into[filled:])
            except LineFault:
                break  # what came before the fault is good; the next call meets it again
            if not count:
                break
            filled += count
        return filled

    def _read(self, into: memoryview) -> int:
        try:
            if self._left is None:
                data = self._response.read1(len(into))
                into[: len(data)] = data
                return len(data)
            count = self._response.fp.readinto1(into[: self._left])
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
            raise LineFault(_words(error)) from None
        self._left -= count
        return count

    def text(self, limit: int = 64 * 1024) -> bytes:
        """A short body, such as what an error says."""
        view = memoryview(bytearray(limit))
        filled = 0
        while filled < limit and (count := self.fill(view[filled:])):
            filled += count
        return bytes(view[:filled])


class _Line:
    """One connection to one server."""

    def __init__(self, parts: SplitResult) -> None:
        self.connection, self.prefix, self.headers = _connection(parts)
        self.is_used = False
        self.socket: socket.socket | None = None  # the connection's, also after it has let go of it

    def ask(self, target: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        self.connection.request("GET", self.prefix + target, headers={**self.headers, **headers})
        self.socket = self.connection.sock
        return self.connection.getresponse()

    def close(self) -> None:
        self.connection.close()
        self.is_used = False

    def has_more(self, seconds: float) -> bool:
        """Whether something can be read within so short a time."""
        if self.socket is None or (isinstance(self.socket, ssl.SSLSocket) and self.socket.pending()):
            return True
        waiting = select.poll()
        waiting.register(self.socket, select.POLLIN)
        return bool(waiting.poll(max(seconds, 0.0) * 1000))

    def abort(self) -> None:
        """Wake who reads from it."""
        if self.socket is not None:
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)


class Wire:
    """The connections of one thread: one for each server that it talks to."""

    def __init__(self, token_for: str, headers: Mapping[str, str]) -> None:
        """The headers go everywhere, but the SECRETS among them only to the server of the URL `token_for`."""
        self._home = _origin(urlsplit(token_for))
        self._headers = {name: value for name, value in headers.items() if name.lower() not in SECRETS}
        self._secret = {name: value for name, value in headers.items() if name.lower() in SECRETS}
        self._lines: dict[str, _Line] = {}
        self._lock = threading.Lock()
        self._is_over = False

    def get(self, url: str, headers: Mapping[str, str]) -> Response:
        """The answer behind all redirects; its `url` is where it came from."""
        parts = _web_address("", url)
        for _ in range(REDIRECTS):
            answer = self._ask(parts, parts.geturl(), headers)
            location = answer.headers.get("location")
            if answer.status not in (301, 302, 303, 307, 308) or not location:
                return answer
            with answer:
                answer.text()
            parts = _web_address(parts.geturl(), location)
        raise LineFault(tr("redirects without an end"))

    def _ask(self, parts: SplitResult, url: str, headers: Mapping[str, str]) -> Response:
        line = self._line(parts)
        secret = self._secret if _origin(parts) == self._home else {}
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            return Response(_send(line, target, {**self._headers, **secret, **headers}), url, line)
        except (OSError, http.client.HTTPException, ValueError) as error:
            line.close()
            raise LineFault(_words(error)) from None

    def _line(self, parts: SplitResult) -> _Line:
        with self._lock:
            if self._is_over:
                raise LineFault("given up")
            return self._lines.setdefault(_origin(parts), _Line(parts))

    def close(self) -> None:
        for line in self._lines.values():
            line.close()

    def abort(self) -> None:
        """From another thread: end what is under way."""
        with self._lock:
            self._is_over = True
            for line in self._lines.values():
                line.abort()


def _web_address(base: str, location: str) -> SplitResult:
    """Where a redirect leads."""
    with contextlib.suppress(ValueError):  # a port that is none, half an IPv6 address
        parts = urlsplit(urljoin(base, location))
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return parts
    raise LineFault(tr("a redirect leads to no web address"))


def _send(line: _Line, target: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
    was_used, line.is_used = line.is_used, True
    try:
        return line.ask(target, headers)
    except (ConnectionError, http.client.BadStatusLine):
        line.connection.close()
        if not was_used:
            raise
    # The server had closed a connection that was kept; that is its right, and no fault.
    return line.ask(target, headers)


def _connection(parts: SplitResult) -> tuple[http.client.HTTPConnection, str, dict[str, str]]:
    """A connection, not yet open; what goes before a request's target; and headers for a proxy."""
    host, is_tls = str(parts.hostname), parts.scheme == "https"
    port = parts.port or (443 if is_tls else 80)
    proxy = _proxy_for(parts)
    if proxy is None:
        if is_tls:
            return http.client.HTTPSConnection(host, port, timeout=STALLED, context=_trust()), "", {}
        return http.client.HTTPConnection(host, port, timeout=STALLED), "", {}
    password = f"{unquote(proxy.username or '')}:{unquote(proxy.password or '')}".encode()
    secret = {"Proxy-Authorization": f"Basic {base64.b64encode(password).decode()}"} if proxy.username else {}
    address = (str(proxy.hostname), proxy.port or (443 if proxy.scheme == "https" else 80))
    if not is_tls:
        return http.client.HTTPConnection(*address, timeout=STALLED), f"http://{parts.netloc}", secret
    tunnel = http.client.HTTPSConnection(*address, timeout=STALLED, context=_trust())
    tunnel.set_tunnel(host, port, secret)
    return tunnel, "", {}


def _proxy_for(parts: SplitResult) -> SplitResult | None:
    proxies = getproxies()
    text = proxies.get(parts.scheme) or proxies.get("all")
    if not text or proxy_bypass(parts.netloc):
        return None
    proxy = urlsplit(text if "://" in text else f"http://{text}")
    if proxy.scheme != "http" or not proxy.hostname:
        raise InstallError(
            tr("downloads cannot go through a proxy of the kind {scheme}://", scheme=proxy.scheme),
            tr("set HTTPS_PROXY to one that is reached by http://"),
            Exit.MODEL,
        )
    return proxy


@cache
def _trust() -> ssl.SSLContext:
    """Whom the hub client trusts."""
    from huggingface_hub.utils import httpx

    return httpx.create_ssl_context()


def _origin(parts: SplitResult) -> str:
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
