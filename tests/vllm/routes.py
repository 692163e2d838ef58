"""Run by an engine's Python: asks every route of vLLM's whole application, with everything switched on, through the
guard and without a server, and prints what came back as JSON. Arguments: the runtime folder, a folder for key digests.
"""

import asyncio
import hashlib
import json
import os
import sys
from typing import Any, get_args

sys.path.insert(0, sys.argv[1])
os.environ |= {
    "RUNTIME_DIRECTORY": sys.argv[2],
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
ON = (
    "tokens_only",
    "enable_tokenizer_info_endpoint",
    "enable_fault_tolerance",
    "enable_scale_out",
    "enable_offline_docs",
)

import vllm_guard  # noqa: E402
from vllm.entrypoints.launchers.cli_args import make_arg_parser  # noqa: E402
from vllm.entrypoints.openai.api_server import build_app  # noqa: E402
from vllm.tasks import SupportedTask  # noqa: E402
from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: E402


class AnyModel:
    """Of the model's configuration, routes want to know what kind of pooling it does."""

    def get_pooling_task(self, _: Any) -> str:
        return "embed"

    def __getattr__(self, _: str) -> None:
        return None


def build(*flags: str) -> Any:
    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(["m", "--middleware", "vllm_guard.Guard", *flags])
    for name in ON:
        setattr(arguments, name, True)
    tasks = tuple(task for each in get_args(SupportedTask) for task in (get_args(each) or (each,)))
    app = build_app(arguments, tasks, AnyModel())
    app.state.engine_client = None  # as on a server without an engine, which is healthy
    return app


def walk(routes: Any, prefix: str = "") -> Any:
    for route in routes:
        path = prefix + getattr(route, "path", "")
        if hasattr(route, "path") and not getattr(route, "routes", None):
            yield path, sorted(getattr(route, "methods", None) or ()), "WebSocket" in type(route).__name__
        yield from walk(getattr(route, "routes", None) or (), path)


def tricks(path: str) -> list[str]:
    return [
        path, f"/{path}", f"{path}/", path.upper(), f"/v1/..{path}", f"/.{path}", f"/health/..{path}",
        path.replace("/", "//"), path.replace("a", "%61"), f"http://host{path}", f"{path};x", f"{path}%00",
    ]  # fmt: skip


async def ask(app: Any, kind: str, method: str, path: str, root_path: str = "", key: str = "") -> int:
    headers = [(b"host", b"host"), *([(b"authorization", b"Bearer " + key.encode())] if key else [])]
    scope = {
        "type": kind, "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "method": method,
        "path": path, "raw_path": path.encode(), "root_path": root_path, "query_string": b"", "headers": headers,
        "client": ("192.0.2.1", 1), "server": ("host", 80), "extensions": {"websocket.http.response": {}}, "state": {},
    }  # fmt: skip
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return int(sent[0].get("status", 0))


async def main() -> None:
    with open(os.path.join(sys.argv[2], "keys"), "w") as file:
        for role in ("metrics", "inference"):
            file.write(f"{role} {role} {hashlib.sha256(role.encode()).hexdigest()} -\n")
    app, found = build(), []
    rooted = build("--root-path", "/api")
    for path, methods, is_socket in walk(app.routes):
        kind = "websocket" if is_socket else "http"
        refused = set()
        for method in {*methods, "GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PROPFIND"}:
            for trick in tricks(path):
                refused.add(await ask(app, kind, method, trick) if trick != path else -1)
                refused.add(await ask(rooted, kind, method, f"/api{trick}") if trick != path else -1)
        plain = {str(await ask(app, kind, method, path)) for method in methods or ["GET"]}
        roles: dict[str, int] = {}
        if vllm_guard.level(path, "") == vllm_guard.ADMIN:
            roles = {
                key: await ask(app, kind, (methods or ["GET"])[0], path, key=key) for key in ("metrics", "inference")
            }
        found.append(
            {"path": path, "methods": methods, "plain": sorted(plain), "tricks": sorted(refused - {-1}), "roles": roles}
        )
    print(json.dumps(found))


asyncio.run(main())
