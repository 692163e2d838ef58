"""While no replica is up: another OpenAI-compatible endpoint, asked with its own key for those who have one of ours.

HAProxy sends here what would be refused otherwise. The guards are down with their engines, so keys are judged here, by
the digests in a replica's unit; the caller's own key stays on this host. Stdlib only.
"""

from __future__ import annotations

import calendar
import contextlib
import hashlib
import http.client
import json
import os
import re
import socketserver
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from installer.runtime.vllm_guard import EXPIRY_FORMAT, presented
    from installer.runtime.vllm_launcher import Key, parse_key
    from installer.runtime.vllm_port import Refused
    from installer.runtime.vllm_systemd import say
else:
    from vllm_guard import EXPIRY_FORMAT, presented
    from vllm_launcher import Key, parse_key
    from vllm_port import Refused
    from vllm_systemd import say

SOCKET = "fallback.sock"  # in the runtime directory
CREDENTIAL = "fallback-key"
ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
PATIENCE = 600.0  # seconds between two bytes of an answer
LONGEST = 64 << 20  # bytes of a request
CHUNK = 64 * 1024
WORD = re.compile(r'--api-key[ =](?:"((?:[^"\\]|\\.)*)"|(\S+))')
TOLD = {"x-vllm-install-fallback": "yes"}


class Endpoint(NamedTuple):
    url: urllib.parse.SplitResult
    key: str
    model: str | None
    unit: str  # the file in which the callers' keys stand


class Answered(Exception):
    """By ourselves: status, message and kind."""


def serve(runtime: str, url: str, model: str | None, unit: str) -> None:
    """In the background, for as long as this process lives."""
    place = os.path.join(runtime, SOCKET)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(place)
    server = Server(place, Handler)
    server.endpoint = Endpoint(urllib.parse.urlsplit(url), own_key(), model, unit)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def own_key() -> str:
    with contextlib.suppress(OSError), open(os.path.join(os.environ.get("CREDENTIALS_DIRECTORY", ""), CREDENTIAL)) as f:
        return f.read().strip()
    return ""


def keys(unit: str) -> dict[str, Key]:
    """By their digests, as they stand in the unit now; one that is revoked is gone from there."""
    with open(unit, encoding="utf-8", errors="replace") as file:
        line = next((line for line in file if line.startswith("ExecStart=")), "")
    found = {}
    for quoted, plain in WORD.findall(line.partition(" -- ")[0]):
        word = (re.sub(r"\\(.)", r"\1", quoted) or plain).replace("%%", "%").replace("$$", "$")
        with contextlib.suppress(Refused):
            key = parse_key(word, 0)
            found[key.digest] = key
    return found


def may_ask(unit: str, headers: list[tuple[bytes, bytes]]) -> bool:
    token = presented(headers)
    key = keys(unit).get(hashlib.sha256(token).hexdigest()) if token else None
    if key is None or key.role == "metrics":
        return False
    return key.expiry == "-" or time.time() < calendar.timegm(time.strptime(key.expiry, EXPIRY_FORMAT))


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 1024
    endpoint: Endpoint

    def handle_error(self, *_: object) -> None:
        """A caller who hangs up is no error of ours."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server
    timeout = PATIENCE

    def log_message(self, *_: object) -> None:
        """Nothing of what callers write goes into the journal."""

    def do_POST(self) -> None:
        self.close_connection = True
        try:
            self._relay(self._wanted())
        except Answered as answered:
            self._say(*answered.args)

    def do_GET(self) -> None:
        self.close_connection = True
        self._say(503, "no replica of the model is up", "service_unavailable")

    do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_HEAD = do_GET

    def _wanted(self) -> bytes:
        """The request's body as it goes out."""
        endpoint = self.server.endpoint
        if not may_ask(endpoint.unit, [(n.lower().encode(), v.encode("latin-1")) for n, v in self.headers.items()]):
            raise Answered(401, "Incorrect or missing API key.", "authentication_error")
        if self.path not in ROUTES:
            raise Answered(503, "no replica of the model is up", "service_unavailable")
        body = self._body()
        if not endpoint.model:
            return body
        try:
            asked = json.loads(body)
            return json.dumps({**asked, "model": endpoint.model}).encode()
        except (ValueError, TypeError, RecursionError):
            raise Answered(400, "the request is no JSON object", "invalid_request_error") from None

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            return self._chunked_body()
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal() or int(length) > LONGEST:
            raise Answered(413, "the request is too large", "invalid_request_error")
        return self.rfile.read(int(length))

    def _chunked_body(self) -> bytes:
        body = bytearray()
        while size := int(self.rfile.readline(32).partition(b";")[0], 16):
            if len(body) + size > LONGEST:
                raise Answered(413, "the request is too large", "invalid_request_error")
            body += self.rfile.read(size)
            self.rfile.readline(32)
        return bytes(body)

    def _relay(self, body: bytes) -> None:
        connection = self._connection()
        try:
            base = self.server.endpoint.url.path.removesuffix("/v1")
            connection.request("POST", base + self.path, body, self._headers())
            response = connection.getresponse()
            if response.status in (401, 403):
                say("the fallback endpoint does not accept the key in FALLBACK_KEY_FILE", 3)
                raise Answered(502, "the fallback endpoint does not accept this service's key", "server_error")
            self._pass_on(response)
        except (OSError, http.client.HTTPException) as error:
            say(f"the fallback endpoint cannot be asked: {error}", 4)
            raise Answered(503, "no replica is up, nor the fallback endpoint", "service_unavailable") from None
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        url = self.server.endpoint.url
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        return kind(url.hostname or "", url.port, timeout=PATIENCE)

    def _headers(self) -> dict[str, str]:
        """Of the caller's none but what says how body and answer are written."""
        kept = {name: self.headers[name] for name in ("Content-Type", "Accept") if name in self.headers}
        key = self.server.endpoint.key
        return {**kept, "User-Agent": "vllm-install", **({"Authorization": f"Bearer {key}"} if key else {})}

    def _pass_on(self, response: http.client.HTTPResponse) -> None:
        self.send_response(response.status)
        for name, text in {"Content-Type": response.getheader("Content-Type", "application/json"), **TOLD}.items():
            self.send_header(name, text)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            while piece := response.read1(CHUNK):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        except (OSError, http.client.HTTPException):
            return  # cut off there or here: without its end the caller sees that it is not whole
        self.wfile.write(b"0\r\n\r\n")

    def _say(self, status: int, message: str, kind: str) -> None:
        body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": "fallback"}}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status == 503:
            self.send_header("Retry-After", "10")
        self.end_headers()
        self.wfile.write(body)
