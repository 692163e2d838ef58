"""Run by an engine's Python: asks every route of SGLang's whole application through the guard and without a server, and
prints what came back as JSON. Arguments: the runtime folder, a folder for key digests.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import sys
from typing import Any

sys.path.insert(0, sys.argv[1])
os.environ |= {"RUNTIME_DIRECTORY": sys.argv[2], "SGLANG_USE_CPU_ENGINE": "1"}

import sglang_serve
from sglang.srt.entrypoints import http_server
from sglang.srt.utils.common import add_prometheus_middleware

METHODS = ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PROPFIND")


def walk(routes: Any, prefix: str = "") -> Any:
    for route in routes:
        path = prefix + getattr(route, "path", "")
        if hasattr(route, "path") and not getattr(route, "routes", None):
            yield path, sorted(getattr(route, "methods", None) or ()), "WebSocket" in type(route).__name__
        below = getattr(route, "original_router", route)  # of a router that was included as it is
        yield from walk(getattr(below, "routes", None) or (), path)


def tricks(path: str) -> list[str]:
    return [
        f"/{path}", f"{path}/", path.upper(), f"/v1/..{path}", f"/.{path}", f"/health/..{path}",
        path.replace("/", "//"), path.replace("a", "%61", 1) + "%", f"http://host{path}", f"{path};x", f"{path}%00",
    ]  # fmt: skip


async def ask(app: Any, kind: str, method: str, path: str, key: str = "", root: str = "") -> int:
    headers = [(b"host", b"host"), *([(b"authorization", b"Bearer " + key.encode())] if key else [])]
    scope = {
        "type": kind, "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "method": method,
        "path": path, "raw_path": path.encode(), "root_path": root, "query_string": b"", "headers": headers,
        "client": ("192.0.2.1", 1), "server": ("host", 80), "extensions": {"websocket.http.response": {}}, "state": {},
    }  # fmt: skip
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    with contextlib.suppress(Exception):  # of what came through: there is no engine behind it
        await app(scope, receive, send)
    return int(sent[0].get("status", 0)) if sent else 0


async def main() -> None:
    with open(os.path.join(sys.argv[2], "keys"), "w") as file:
        for role in ("metrics", "inference"):
            file.write(f"{role} {role} {hashlib.sha256(role.encode()).hexdigest()} -\n")
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = sys.argv[2]
    app, found = http_server.app, []
    sglang_serve.put_guard(app)
    add_prometheus_middleware(app)
    for path, methods, is_socket in walk(app.routes):
        kind = "websocket" if is_socket else "http"
        refused = {await ask(app, kind, method, trick) for method in METHODS for trick in tricks(path)}
        refused |= {await ask(app, kind, method, f"/api{path}/", root="/api") for method in METHODS}
        plain = {await ask(app, kind, method, path) for method in methods or ["GET"]}
        roles = {key: await ask(app, kind, (methods or ["GET"])[0], path, key) for key in ("metrics", "inference")}
        found.append({"path": path, "plain": sorted(plain), "tricks": sorted(refused), "roles": roles})
    print(json.dumps(found))


asyncio.run(main())
