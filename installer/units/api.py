"""A model server as its clients see it: requests with or without a key, whole answers and streamed ones."""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import re
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from installer.base.language import tr
from installer.units.custody import Custody
from installer.units.processes import as_address

Body = dict[str, object]
LONGEST = 16 << 20  # bytes of an answer that are worth reading


class NoAnswer(Exception):
    """The request was not answered; says why in words."""


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes

    def json(self) -> dict[str, object]:
        try:
            value = json.loads(self.body)
        except (ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}

    @property
    def words(self) -> str:
        """What an error says, in whichever of the usual places."""
        value = self.json()
        error = value.get("error")
        found = (error.get("message") if isinstance(error, dict) else error) or value.get("message")
        return " ".join(str(found or value.get("detail") or self.body[:200].decode(errors="replace")).split())[:400]


@dataclass(frozen=True)
class Event:
    at: float  # seconds since the request was sent
    data: bytes

    def json(self) -> dict[str, object]:
        return Answer(200, self.data).json()


# Where a gateway gives what one engine of another host says of itself: by the host's address, and its number there.
FIGURES_OF = "/hosts/{address}/engines/{number}/metrics"
ONLY_HERE = "x-vllm-install-here"  # a request with this header is answered by replicas of this host, or by none


@dataclass(frozen=True)
class Api:
    address: str
    port: int
    key: str | None
    timeout: float
    custody: Custody | None = None  # of the port; without it the key is of no worth to others
    certificate: str | None = None  # which the server has to present, where it speaks TLS
    only_here: bool = False  # a gateway is to ask nobody but the replicas of this host

    @property
    def url(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{'http' if self.certificate is None else 'https'}://{host}:{self.port}"

    def ask(self, method: str, path: str, body: Body | None = None) -> Answer:
        with self._request(method, path, body) as (response, _), self.explained(path):
            return Answer(response.status, response.read(LONGEST))

    def with_key(self, key: str | None) -> Api:
        return replace(self, key=key)

    @contextlib.contextmanager
    def stream(self, path: str, body: Body) -> Iterator[Stream]:
        with self._request("POST", path, {**body, "stream": True}) as (response, began):
            yield Stream(self, path, response, began)

    @contextlib.contextmanager
    def _request(self, method: str, path: str, body: Body | None) -> Iterator[tuple[http.client.HTTPResponse, float]]:
        """The response, and when the request was sent."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        headers |= {ONLY_HERE: "1"} if self.only_here else {}
        connection: http.client.HTTPConnection | None = None
        try:
            with self.explained(path):
                connection = self._connection()
                self._connect(connection)
                began = time.monotonic()
                connection.request(method, path, json.dumps(body) if body is not None else None, headers)
                response = connection.getresponse()
            try:
                yield response, began
            finally:
                response.close()
        finally:
            if connection:
                connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        address = str(as_address(self.address))
        if self.certificate is None:
            return http.client.HTTPConnection(address, self.port, timeout=self.timeout)
        return http.client.HTTPSConnection(address, self.port, timeout=self.timeout, context=only(self.certificate))

    def _connect(self, connection: http.client.HTTPConnection) -> None:
        """To the service itself, where a key is to be sent."""
        custody = self.custody if self.key else None
        before = custody.sockets(self.address, self.port) if custody else {}
        connection.connect()
        if custody and (why := custody.objection(self.address, self.port, before)):
            raise NoAnswer(tr("no key was sent to {url}: {why}", url=self.url, why=why))

    @contextlib.contextmanager
    def explained(self, path: str) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            raise NoAnswer(
                tr("no answer from {url} within {seconds:g} s", url=self.url + path, seconds=self.timeout)
            ) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise NoAnswer(tr("no answer from {url}: {reason}", url=self.url + path, reason=reason)) from None


class Stream:
    """An answer that comes in pieces; leaving it early closes the connection."""

    def __init__(self, api: Api, path: str, response: http.client.HTTPResponse, began: float) -> None:
        self.status = response.status
        self.kind = (response.getheader("Content-Type") or "").partition(";")[0].strip()
        self._api, self._path, self._response, self._began = api, path, response, began

    def events(self) -> Iterator[Event]:
        """Server-sent events, each when it arrives."""
        while True:
            with self._api.explained(self._path):
                line = self._response.readline(LONGEST)
            if not line:
                return
            if line.startswith(b"data:"):
                yield Event(time.monotonic() - self._began, line[5:].strip())

    def rest(self) -> bytes:
        with self._api.explained(self._path):
            return self._response.read(LONGEST)


def only(certificate: str) -> ssl.SSLContext:
    """For a server with this very certificate, by whatever name it is asked, and for no other."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    end = "-----END CERTIFICATE-----"
    context.load_verify_locations(cadata=certificate.partition(end)[0] + end)
    return context


def gauge(metrics: str, name: str) -> float | None:
    """The sum of a metric over all its labels; None where it is not told, or garbled."""
    found = re.findall(rf"^{re.escape(name)}(?:\{{.*\}})? (\S+)\s*$", metrics, re.MULTILINE)
    try:
        total = sum(map(float, found))
    except ValueError:
        return None
    return total if found and math.isfinite(total) else None


def local_address(listen: str) -> str:
    """Where a service that listens on `listen` is reached from this host."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen, listen)  # noqa: S104
