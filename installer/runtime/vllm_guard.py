"""What runs inside vLLM's own processes: the guard in front of every route.

vLLM gets the guard as `--middleware vllm_guard.Guard`, which makes it the outermost layer of the API server: no route,
mount or websocket is reached around it. Stdlib only, because it runs on the engine's Python, not on ours.
"""

from __future__ import annotations

import asyncio
import calendar
import json
import logging
import os
import re
import stat
import time
from collections.abc import Awaitable
from hashlib import sha256
from posixpath import normpath
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from installer.runtime import vllm_door
    from installer.runtime.vllm_connections import Connections
    from installer.runtime.vllm_drain import App, Drain, Receive, Scope, Send, leaving
    from installer.runtime.vllm_limits import Refusal
    from installer.runtime.vllm_meter import ENGINE_DEAD, Meter, words_of
    from installer.runtime.vllm_systemd import seconds
else:
    import vllm_door
    from vllm_connections import Connections
    from vllm_drain import App, Drain, Receive, Scope, Send, leaving
    from vllm_limits import Refusal
    from vllm_meter import ENGINE_DEAD, Meter, words_of
    from vllm_systemd import seconds

OPEN, METRICS, INFERENCE, ADMIN = range(4)
ROLES = {"metrics": METRICS, "inference": INFERENCE, "admin": ADMIN}
EXPIRY_FORMAT = "%Y-%m-%dT%H:%M:%SZ"

# Routes with a level of their own; whatever is not listed needs an inference key.
OPEN_ROUTES = ("/health", "/ping")
METRICS_ROUTES = ("/metrics", "/load")
ADMIN_ROUTES = (
    # state of the engine, its weights and its requests as a whole
    "/sleep", "/wake_up", "/is_sleeping", "/pause", "/resume", "/is_paused", "/collective_rpc", "/server_info",
    "/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache", "/release_kv_cache_memory",
    "/abort_requests", "/inference/v1/abort_requests", "/kv_event_sources",
    "/init_weight_transfer_engine", "/shutdown_weight_transfer_engine", "/start_weight_update",
    "/start_draft_weight_update", "/update_weights", "/finish_weight_update", "/update_weight_version",
    "/weight_info", "/weight_checker", "/get_world_size",
    "/start_profile", "/stop_profile", "/scale_elastic_ep", "/is_scaling_elastic_ep", "/fault_tolerance",
    "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/adapters",
    # the map of all of these
    "/docs", "/redoc", "/openapi.json", "/static",
)  # fmt: skip
LEVELS = {
    **dict.fromkeys(OPEN_ROUTES, OPEN),
    **dict.fromkeys(METRICS_ROUTES, METRICS),
    **dict.fromkeys(("/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/embeddings"), INFERENCE),
    **dict.fromkeys(("/v1/responses", "/v1/messages", "/tokenize", "/detokenize"), INFERENCE),
}

LOOK_AGAIN = 0.05  # seconds that a key file is taken to be unchanged
LARGEST = 1 << 20  # bytes of a key file; a thousand keys are an eighth of it
KEY_LINE = re.compile(
    rb"([a-z0-9_-]+) (metrics|inference|admin) ([0-9a-f]{64}) (-|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)", re.ASCII
)


OLD = re.compile(r"-old(-\d+)?\Z")  # how a key is called that lives on for a while beside its successor


class Key(NamedTuple):
    name: str
    level: int
    expires: float | None

    @property
    def account(self) -> str:
        """Whose limits and usage: a key and its successor are one client's."""
        return OLD.sub("", self.name) if self.expires is not None else self.name


PROBE = "probe"  # the watcher's key, which nothing limits: it has to be answered when nobody else is
# The watcher asks this without a key at each start, to see that the guard is in place: no news.
SELF_CHECK = "/is-this-guarded"


class Keys:
    """The digests in the key file, never older than LOOK_AGAIN.

    Whatever is wrong with the file, nobody is let in but who is valid in what can be read of it now.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.by_digest: dict[bytes, Key] = {}
        self._look_at = 0.0
        self._seen: tuple[int, ...] | None = (0,)
        self._epoch = 0.0

    def find(self, token: bytes) -> Key | None:
        """The digest is looked up, not compared: time tells nothing about a key, nor how many there are."""
        if time.monotonic() >= self._look_at:
            self._look()
        return self.by_digest.get(sha256(token).digest())

    def is_expired(self, key: Key) -> bool:
        """A clock that is set back brings no key to life again, until the keys are read anew."""
        if key.expires is None:
            return False
        self._epoch = max(self._epoch, time.time() - time.monotonic())
        return self._epoch + time.monotonic() >= key.expires

    def _look(self) -> None:
        self._look_at = time.monotonic() + LOOK_AGAIN
        try:
            status = os.lstat(self.path)
            seen = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)
            if seen == self._seen:
                return
            self.by_digest, damaged = parse_keys(read_keys(self.path))
            self._seen = seen
            self._epoch = time.time() - time.monotonic()
            if damaged:
                log.error("%d lines of %s cannot be read: the keys in them are not valid", damaged, self.path)
        except Exception as error:  # of whatever kind: the old keys must not stay in force
            if self._seen is not None:
                log.error("no key is valid any more: %s: %s", self.path, error)
            self.by_digest, self._seen = {}, None


def read_keys(path: str) -> bytes:
    """A plain file of ours and of a sane size; nothing else is waited for, followed or believed."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is no file")
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise OSError("others may have written it")
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise OSError(f"it is larger than {LARGEST} bytes")
    return content


def parse_keys(content: bytes) -> tuple[dict[bytes, Key], int]:
    """From lines of `name role digest expiry`, with `-` for a key that stays valid; and how many make no sense."""
    keys: dict[bytes, Key] = {}
    damaged = 0
    for line in content.removesuffix(b"\n").split(b"\n"):
        match = KEY_LINE.fullmatch(line)
        if match is None:
            damaged += 1
            continue
        name, role, digest, expiry = (word.decode() for word in match.groups())
        try:
            expires = None if expiry == "-" else float(calendar.timegm(time.strptime(expiry, EXPIRY_FORMAT)))
        except ValueError:  # a day that does not exist
            damaged += 1
            continue
        keys.setdefault(bytes.fromhex(digest), Key(name, ROLES[role], expires))
    return keys, damaged


def level(path: str, root: str) -> int:
    """What a route needs; an odd spelling of a path never needs less than the plain one."""
    routed = path
    if root and (path == root or path.startswith(root.rstrip("/") + "/")):
        routed = path[len(root.rstrip("/")) :]
    if routed in OPEN_ROUTES:
        return OPEN
    if routed in METRICS_ROUTES:
        return METRICS
    spellings = {spelling for each in (path, routed) for spelling in (each.lower(), tidy(each))}
    return ADMIN if any(is_admin(spelling) for spelling in spellings) else INFERENCE


def tidy(path: str) -> str:
    return normpath("/" + path.lower().replace("\\", "/").lstrip("/"))


def is_admin(path: str) -> bool:
    return path.startswith(ADMIN_ROUTES) and any(path == r or path.startswith(r + "/") for r in ADMIN_ROUTES)


class Guard:
    """Default deny for an ASGI application.

    A plain method that returns the application's own coroutine, but for requests that are counted: those that have the
    engine do something, which costs a hundred times as much as to count them.
    """

    levels = LEVELS  # looked up instead of worked out: nearly every request goes to one of these
    level = staticmethod(level)
    metering = Meter

    def __init__(self, app: App) -> None:
        self.app = app
        self.keys = Keys(os.path.join(os.environ["RUNTIME_DIRECTORY"].partition(":")[0], "keys"))
        self.refusals, self.meter = Refusals(), self.metering()
        self.patience = seconds("HEAR_OUT")  # with bodies of those who show no key; 0 without a gateway
        self.drain: Drain | None = None
        self.door: asyncio.Future[None] | None = None

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        kind = scope["type"]
        if kind == "lifespan":
            Connections.bound(scope)
            self.drain, self.door = Drain.armed(scope, self._leave), vllm_door.answer(scope)
            self.meter.start(scope)
            return self.app(scope, receive, send)
        root = scope.get("root_path")
        needed = self.levels.get(scope["path"]) if not root else None
        if needed is None:
            needed = self.level(scope["path"], root or "")
        if needed == OPEN and kind == "http":
            return self._without_key(self.app, scope, receive, send)
        token = presented(scope["headers"])
        key = self.keys.find(token) if token else None
        if key is not None and key.level >= needed and not self.keys.is_expired(key):
            if needed == INFERENCE and key.name != PROBE and (kind != "http" or scope["method"] == "POST"):
                return self._count(key.account, scope, receive, send)
            if scope["path"] == "/metrics" and kind == "http" and scope["method"] == "GET":
                return self.meter.expose(self.app, scope, receive, send)
            return self.app(scope, receive, send)
        if kind == "http" and is_preflight(scope):
            return self._without_key(self.app, scope, receive, send)
        return self._without_key(self._refusal(scope, bool(token), key), scope, receive, send)

    def _without_key(self, app: App, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if self.patience and scope["type"] == "http" and has_body(scope):
            return hear_out(app, self.patience, scope, receive, send)
        return app(scope, receive, send)

    async def _count(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        admitted = self.meter.admit(name)
        if admitted is ENGINE_DEAD and self.drain:
            self.drain.begin()  # who connects from now on is answered by the next one
        if isinstance(admitted, Refusal):
            self.refusals.note(scope, f"the key {name}: {admitted.message}")
            await refuse(scope, send, admitted.status, *words_of(admitted))
        else:
            await self.meter.serve(admitted, self.app, scope, receive, send)

    def _leave(self) -> None:
        """Put before the application only now: a request costs nothing more until then."""
        self.app = leaving(self.app)

    def _refusal(self, scope: Scope, tried: bool, key: Key | None) -> App:
        if key is None:
            status, why = 401, "an unknown key" if tried else "no key"
        elif self.keys.is_expired(key):
            status, why = 401, f"the expired key {key.name}"
        else:
            status, why = 403, f"the key {key.name}, whose role does not allow it"
        if scope["path"] != SELF_CHECK:
            self.refusals.note(scope, why)
        return lambda scope, receive, send: refuse(scope, send, status, *words_of_refusal(status))


def presented(headers: list[tuple[bytes, bytes]]) -> bytes:
    """The key a request brings, b"" for none; two that differ are no key, even where one of them is valid."""
    token: bytes | None = None
    for name, value in headers:
        if name == b"authorization":
            if value[:7].lower() != b"bearer ":
                continue
            found = value[7:].strip()
        elif name == b"x-api-key":
            found = value.strip()
        else:
            continue
        if token is not None and found != token:
            return b""
        token = found
    return token or b""


def is_preflight(scope: Scope) -> bool:
    """A browser's question before a cross-origin request, which cannot carry a key; vLLM's CORS layer answers it."""
    if scope["method"] != "OPTIONS":
        return False
    names = {name for name, _ in scope["headers"]}
    return b"origin" in names and b"access-control-request-method" in names


ANSWERS = {
    401: ("Incorrect or missing API key.", "authentication_error", "invalid_api_key"),
    403: ("This API key does not allow this route.", "permission_error", "insufficient_role"),
}


def words_of_refusal(status: int) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """An error as OpenAI's and Anthropic's clients expect it."""
    message, error, code = ANSWERS[status]
    body = json.dumps({"error": {"message": message, "type": error, "param": None, "code": code}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return body, headers


def refuse(scope: Scope, send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> Awaitable[None]:
    if scope["type"] != "websocket":
        return answer(send, status, "http.response", body, headers)
    if "websocket.http.response" in scope.get("extensions", {}):
        return answer(send, status, "websocket.http.response", body, headers)
    return send({"type": "websocket.close", "code": 1008 if status < 429 else 1013, "reason": ""})


async def answer(send: Send, status: int, kind: str, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": f"{kind}.start", "status": status, "headers": headers})
    await send({"type": f"{kind}.body", "body": body})


# Behind a gateway, who shows no key is answered when the request is over: after an answer that comes before, HAProxy
# reads on for as long as a byte comes now and then. What does not end in time it closes (408, in its configuration).
LONGEST = 64 << 20  # bytes that are read for an answer that does not depend on them


def has_body(scope: Scope) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in scope["headers"]
    )


async def hear_out(app: App, patience: float, scope: Scope, receive: Receive, send: Send) -> None:
    try:
        await asyncio.wait_for(to_its_end(receive), patience)
    except (asyncio.TimeoutError, ValueError):  # TimeoutError itself is another one before Python 3.11
        await answer(send, 408, "http.response", b"", [(b"content-length", b"0"), (b"connection", b"close")])
    else:
        await app(scope, over, send)


async def to_its_end(receive: Receive) -> None:
    size, message = 0, dict[str, Any](more_body=True)
    while message.get("more_body"):
        message = await receive()
        size += len(message.get("body", b""))
        if size > LONGEST:
            raise ValueError("nobody means so much")


async def over() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


# vLLM's handlers and format serve its child loggers, too.
log = logging.getLogger("vllm.guard")


class Refusals:
    """One line per refusal, but a flood of them cannot flood the journal: ten at once, then one in six seconds."""

    BURST, EVERY = 10.0, 6.0

    def __init__(self) -> None:
        self._left, self._at, self._hidden = self.BURST, time.monotonic(), 0

    def note(self, scope: Scope, why: str) -> None:
        now = time.monotonic()
        self._left = min(self.BURST, self._left + (now - self._at) / self.EVERY)
        self._at = now
        if self._left < 1:
            self._hidden += 1
            return
        self._left -= 1
        client = ascii(caller(scope)[:60])[1:-1]
        more = f" ({self._hidden} more since the last such line)" if self._hidden else ""
        self._hidden = 0
        # !a: a path may hold line breaks and terminal codes, and no one may write lines into the journal.
        route = f"{ascii(scope.get('method', 'websocket'))[1:-1][:20]} {scope['path'][:120]!a}"
        log.warning("refused %s from %s: %s%s", route, client, why, more)


def caller(scope: Scope) -> str:
    """By the door a websocket is nobody's; the gateway says whose it is."""
    if client := scope.get("client"):
        return str(client[0])
    said = dict(scope["headers"]).get(b"x-forwarded-for", b"unknown")
    return str(said.decode("latin-1"))
