"""ModelScope on localhost: the part of its HTTP API that a download needs, over the repositories of a Hub."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


@dataclass
class Commit:
    files: dict[str, bytes]
    touched: dict[str, str]  # file -> the commit that wrote it last


@dataclass
class Asked:
    path: str
    headers: dict[str, str]


@dataclass
class ModelScope:
    """Serve models until the end of the `with` block. Small files come directly, large ones from another host."""

    commits: dict[str, dict[str, Commit]] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    lie: bytes | None = None  # sent in place of any file
    names_head: bool = True  # whether a listing names the newest commit by its first digits

    def __enter__(self) -> ModelScope:
        handler = type("Handler", (_Handler,), {"scope": self})
        self.server = ThreadingHTTPServer(("", 0), handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def add(self, model: str, files: dict[str, bytes]) -> str:
        """A new commit on master, in which only what differs counts as touched."""
        before = self.commits.setdefault(model, {}).get(self.heads.get(model, ""), Commit({}, {}))
        commit = hashlib.sha1(repr((model, sorted(files.items()))).encode()).hexdigest()
        touched = {
            name: before.touched[name] if before.files.get(name) == content else commit
            for name, content in files.items()
        }
        self.commits[model][commit] = Commit(files, touched)
        self.heads[model] = commit
        return commit


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    scope: ModelScope

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.scope.asked.append(Asked(self.path, {name.lower(): value for name, value in self.headers.items()}))
        if parts.path.startswith("/lfs/"):
            _, _, commit, model, name = parts.path.split("/", 4)
            return self.file(self.scope.commits[model.replace("+", "/")][commit].files[name])
        match = re.fullmatch(r"/api/v1/models/(.+?)/repo(/files)?", parts.path)
        model = match[1] if match else ""
        if not match or model not in self.scope.commits:
            return self.json(404, {"Code": 10010205001, "Message": "model not found", "Success": False})
        revision = query["Revision"]
        commit = self.scope.heads[model] if revision == "master" else revision
        found = self.scope.commits[model].get(commit)
        if match[2]:
            return self.listing(commit, found)
        if found is None or query["FilePath"] not in found.files:
            return self.json(404, {"Code": 10010205002, "Message": "file not found", "Success": False})
        name = query["FilePath"]
        if name.endswith(".safetensors"):
            self.send_response(302)
            port = self.scope.server.server_port  # to a client, another address is another host
            self.send_header("Location", f"http://127.0.0.2:{port}/lfs/{commit}/{model.replace('/', '+')}/{name}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        return self.file(found.files[name])

    def listing(self, commit: str, found: Commit | None) -> None:
        # An unknown revision is no error here, but an empty answer.
        data: dict[str, object] = {"Files": None, "LatestCommitter": None}
        if found:
            files = [
                {
                    "Path": name, "Name": name.rpartition("/")[2], "Type": "blob", "Size": len(content),
                    "Sha256": hashlib.sha256(content).hexdigest(), "IsLFS": name.endswith(".safetensors"),
                    "Revision": found.touched[name], "CommittedDate": 1_700_000_000 + (found.touched[name] == commit),
                }
                for name, content in found.files.items()
            ]  # fmt: skip
            files.append({"Path": "a", "Name": "a", "Type": "tree", "Size": 0, "Sha256": ""})
            short = commit[:8] if self.scope.names_head else ""
            data = {"Files": files, "LatestCommitter": {"Id": "", "ShortId": short}}
        self.json(200, {"Code": 200, "Data": data, "Message": "success", "Success": True})

    def file(self, content: bytes) -> None:
        content = self.scope.lie if self.scope.lie is not None else content
        begin, end, status = 0, len(content), 200
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if span:
            begin, end, status = int(span[1]), min(int(span[2] or len(content)) + bool(span[2]), len(content)), 206
        self.send_response(status)
        self.send_header("Content-Length", str(end - begin))
        self.send_header("Accept-Ranges", "bytes")
        if span:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(content[begin:end])

    def json(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
