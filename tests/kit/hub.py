"""A model hub on localhost: the real protocol over real HTTP, and every misbehaviour a test asks for.

Small files come from the hub itself; LFS files by a redirect to a second server, as from a CDN.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LFS = (".safetensors", ".bin", ".gguf", ".pt", ".onnx", "tokenizer.json")
PIECE = 64 * 1024
BULK_PIECE = 1024 * 1024


class Bulk:
    """A large content that is sent without passing through Python: a beginning of its own, then a file."""

    def __init__(self, beginning: bytes, body: int) -> None:
        self.beginning = beginning
        self.body = body
        self._len = len(beginning) + os.fstat(body).st_size
        digest, at = hashlib.sha256(beginning), 0
        while piece := os.pread(body, 16 * BULK_PIECE, at):
            digest.update(piece)
            at += len(piece)
        self.sha256 = digest.hexdigest()

    def __len__(self) -> int:
        return self._len

    def send(self, connection: socket.socket, begin: int, end: int) -> int:
        first = len(self.beginning)
        if begin < first:
            return connection.send(self.beginning[begin : min(end, first)])
        return os.sendfile(connection.fileno(), self.body, begin - first, end - begin)


@dataclass
class File:
    content: bytes | Bulk
    lfs: bool

    @cached_property
    def sha256(self) -> str:
        return self.content.sha256 if isinstance(self.content, Bulk) else hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        size = len(self.content)
        return b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n" % (self.sha256.encode(), size)

    @property
    def pointer_size(self) -> int:
        return len(self.pointer)

    @cached_property
    def git_sha1(self) -> str:
        body = self.pointer if self.lfs else self.content
        assert isinstance(body, bytes)
        return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


@dataclass
class Repo:
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    token: str = ""


@dataclass
class Fault:
    """What goes wrong with requests whose path matches; `times` of them, or all with None."""

    path: str
    times: int | None = 1
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut: int | None = None  # send this many bytes, then reset the connection
    end: int | None = None  # send this many bytes as if they were all
    corrupt: bool = False  # flip one bit in the middle
    no_range: bool = False
    shift: int = 0  # a range begins this many bytes before the one that was asked for, and says otherwise
    drip: float = 0.0  # seconds between small pieces
    hold: threading.Event | None = None  # with cut: wait for this before the reset
    reached: threading.Event = field(default_factory=threading.Event)  # set when the cut's bytes are out


@dataclass(frozen=True)
class Request:
    method: str
    server: str
    path: str
    headers: dict[str, str]


class Hub:
    """Serve repositories until the end of the `with` block."""

    def __init__(self, rate: float = 0.0, tls: ssl.SSLContext | None = None) -> None:
        """`rate`: bytes a second that one connection gets, as mirrors limit them; 0 is no limit."""
        self.rate = rate
        self.repos: dict[str, Repo] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.sent = 0  # bytes of file content
        self.sending = self.most_at_once = 0  # connections on which the CDN sends
        self.welcome = 0  # more of them than this are refused; 0 is no limit
        self._lock = threading.Condition()
        self._scheme = "https" if tls else "http"
        self._servers = {name: _server(self, name) for name in ("hub", "cdn")}
        for server in self._servers.values() if tls else ():
            server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)

    def __enter__(self) -> Hub:
        for server in self._servers.values():
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for fault in self.faults:
            if fault.hold:
                fault.hold.set()
        for server in self._servers.values():
            server.shutdown()
            server.server_close()

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._servers['hub'].server_port}"

    @property
    def cdn(self) -> str:
        # Another name for the same machine: to the client this is another host.
        return f"{self._scheme}://{ADDRESSES['cdn']}:{self._servers['cdn'].server_port}"

    def add(self, repo: str, files: Mapping[str, bytes | Bulk], ref: str = "main") -> str:
        """A new commit of a repository; returns its id."""
        made = {name: File(content, name.endswith(LFS)) for name, content in files.items()}
        summary = [repo, *sorted(f"{name} {file.git_sha1}" for name, file in made.items())]
        commit = hashlib.sha1("\n".join(summary).encode()).hexdigest()
        known = self.repos.setdefault(repo, Repo())
        known.commits[commit] = made
        known.refs[ref] = commit
        return commit

    def fail(self, path: str, **what: Any) -> Fault:
        fault = Fault(path, **what)
        self.faults.append(fault)
        return fault

    def take_fault(self, path: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.times != 0 and re.search(fault.path, path):
                    if fault.times is not None:
                        fault.times -= 1
                    return fault
        return None

    def count(self, request: Request | None = None, sent: int = 0) -> None:
        with self._lock:
            self.sent += sent
            if request:
                self.requests.append(request)
            self._lock.notify_all()

    @contextmanager
    def admitted(self) -> Iterator[bool]:
        """Whether there is room for one more."""
        with self._lock:
            is_welcome = not self.welcome or self.sending < self.welcome
            self.sending += is_welcome
            self.most_at_once = max(self.most_at_once, self.sending)
        try:
            yield is_welcome
        finally:
            with self._lock:
                self.sending -= is_welcome
                self._lock.notify_all()

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        """Until something holds about what was asked for and sent."""
        with self._lock:
            assert self._lock.wait_for(is_so, timeout=300)

    def find_lfs(self, sha256: str) -> bytes | Bulk | None:
        for repo in self.repos.values():
            for files in repo.commits.values():
                for file in files.values():
                    if file.lfs and file.sha256 == sha256:
                        return file.content
        return None


# Two hosts, as far as a client that must not carry its token to the second can tell; neither needs a resolver.
ADDRESSES = {"hub": "127.0.0.1", "cdn": "127.0.0.2"}


def _server(hub: Hub, name: str) -> ThreadingHTTPServer:
    handler = type("Handler", (_Handler,), {"hub": hub, "name": name})
    server = ThreadingHTTPServer((ADDRESSES[name], 0), handler)
    server.daemon_threads = True
    return server


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: Hub
    name: str

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.count(Request(self.command, self.name, path, headers))
        fault = self.hub.take_fault(path)
        if fault and fault.status:
            return self.answer(fault.status, fault.body, fault.headers)
        try:
            if self.name == "cdn":
                return self.cdn(path, fault)
            if path.startswith("/api/models/"):
                return self.api(path.removeprefix("/api/models/"))
            return self.resolve(path.removeprefix("/"), fault)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
            return None

    # what a hub knows

    def api(self, rest: str) -> None:
        name, _, tail = rest.partition("/revision/")
        for verb in ("/tree/", "/auth-check"):
            if verb in rest:
                name, _, tail = rest.partition(verb)
        repo = self.allowed(name)
        if repo is None:
            return None
        if rest.endswith("/auth-check"):
            if not self.may_read(repo):
                return self.refuse_gated()
            return self.json({})
        commit = self.commit(repo, tail)
        if commit is None:
            return None
        files = repo.commits[commit]
        if "/tree/" in rest:
            return self.json([tree_entry(name, file) for name, file in files.items()])
        siblings = [sibling(name, file) for name, file in files.items()]
        gated = "manual" if repo.gated else False
        self.json({"id": name, "sha": commit, "private": False, "gated": gated, "tags": [], "siblings": siblings})
        return None

    def resolve(self, path: str, fault: Fault | None) -> None:
        name, _, rest = path.partition("/resolve/")
        repo = self.allowed(name)
        if repo is None:
            return None
        if not self.may_read(repo):
            return self.refuse_gated()
        revision, _, filename = rest.partition("/")
        commit = self.commit(repo, revision)
        if commit is None:
            return None
        file = repo.commits[commit].get(filename)
        if file is None:
            return self.error(404, "EntryNotFound")
        headers = {"X-Repo-Commit": commit, "ETag": f'"{file.git_sha1}"'}
        if not file.lfs:
            return self.content(file.content, headers, fault)
        headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))}
        self.answer(302, b"", headers | {"Location": f"{self.hub.cdn}/lfs/{file.sha256}/{filename}"})
        return None

    def cdn(self, path: str, fault: Fault | None) -> None:
        sha256 = path.split("/")[2]
        content = self.hub.find_lfs(sha256)
        if content is None:
            return self.answer(404)
        with self.hub.admitted() as is_welcome:
            if not is_welcome:
                return self.answer(503)
            self.content(content, {"ETag": f'"{sha256}"'}, fault)
        return None

    # who may see it

    def allowed(self, name: str) -> Repo | None:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.token and not repo.gated and not self.may_read(repo)):
            self.error(404, "RepoNotFound")
            return None
        return repo

    def may_read(self, repo: Repo) -> bool:
        return not repo.token or self.headers.get("authorization") == f"Bearer {repo.token}"

    def commit(self, repo: Repo, revision: str) -> str | None:
        commit = repo.refs.get(revision or "main", revision)
        if commit not in repo.commits:
            self.error(404, "RevisionNotFound")
            return None
        return commit

    def refuse_gated(self) -> None:
        self.error(403 if self.headers.get("authorization") else 401, "GatedRepo")

    # how it is sent

    def error(self, status: int, code: str) -> None:
        self.answer(status, b'{"error": "no"}', {"X-Error-Code": code, "X-Error-Message": code})

    def json(self, content: object) -> None:
        self.answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.start(status, (headers or {}) | {"Content-Length": str(len(body))})
        if self.command != "HEAD":
            self.wfile.write(body)

    def start(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def content(self, content: bytes | Bulk, headers: dict[str, str], fault: Fault | None) -> None:
        fault = fault or Fault("")
        if isinstance(content, bytes):
            content = damaged(content, fault)
        begin, end, status = 0, len(content), 200
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        if not fault.no_range:
            headers = headers | {"Accept-Ranges": "bytes"}
            if span:
                begin, status = int(span[1]), 206
                end = min(end, int(span[2]) + 1) if span[2] else end
                if begin >= len(content):
                    return self.answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
                headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(content)}"
                if fault.shift:  # what it says it sends, and what it sends, are two things
                    begin, end = max(begin - fault.shift, 0), max(end - fault.shift, end - begin)
        self.start(status, headers | {"Content-Length": str(end - begin)})
        if self.command != "HEAD":
            self.send(content, begin, end, fault)
        return None

    def send(self, content: bytes | Bulk, begin: int, end: int, fault: Fault) -> None:
        limit = end if fault.cut is None else min(begin + fault.cut, end)
        step = 1024 if fault.drip else BULK_PIECE if isinstance(content, Bulk) else PIECE
        rate = self.hub.rate
        step = min(step, max(int(rate / 400), 1024)) if rate else step
        at, began = begin, time.monotonic()
        while at < limit:
            upto = min(at + step, limit)
            if isinstance(content, Bulk):
                sent = content.send(self.connection, at, upto)
            else:
                self.wfile.write(memoryview(content)[at:upto])
                sent = upto - at
            at += sent
            self.hub.count(sent=sent)
            if fault.drip:
                threading.Event().wait(fault.drip)
            if rate and (ahead := (at - begin) / rate - (time.monotonic() - began)) > 0:
                time.sleep(ahead)
        if fault.cut is not None:
            fault.reached.set()
            if fault.hold:
                fault.hold.wait()
            self.reset()

    def reset(self) -> None:
        """End the connection as a broken line does: the client may even lose what was under way."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True


def damaged(content: bytes, fault: Fault) -> bytes:
    if fault.corrupt:
        middle = len(content) // 2
        content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    return content if fault.end is None else content[: fault.end]


def sibling(name: str, file: File) -> dict[str, object]:
    shown: dict[str, object] = {"rfilename": name, "size": len(file.content), "blobId": file.git_sha1}
    if file.lfs:
        shown["lfs"] = {"sha256": file.sha256, "size": len(file.content), "pointerSize": file.pointer_size}
    return shown


def tree_entry(name: str, file: File) -> dict[str, object]:
    shown: dict[str, object] = {"type": "file", "path": name, "size": len(file.content), "oid": file.git_sha1}
    if file.lfs:
        shown["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": file.pointer_size}
    return shown
