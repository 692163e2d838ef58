"""Becomes SGLang's server: with our guard before every route, and on the socket that the launcher listens on.

    sglang_serve.py WORD…    its flags

SGLang knows no `--middleware`, so its application is wrapped here, around all that it adds itself. Stdlib only, and
nothing of SGLang is looked at before it is imported here.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from installer.runtime import vllm_door, vllm_guard
    from installer.runtime.vllm_count import CALL, TELL_EVERY, Call, Question
    from installer.runtime.vllm_listen import LISTENER
    from installer.runtime.vllm_meter import Meter
else:
    import vllm_door
    import vllm_guard
    from vllm_count import CALL, TELL_EVERY, Call, Question
    from vllm_listen import LISTENER
    from vllm_meter import Meter

# What an inference key may ask. Whatever is not listed needs an admin's, so a route of a newer version does as well.
INFERENCE = frozenset(
    (
        "/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/embeddings", "/v1/classify", "/v1/rerank",
        "/v1/score", "/v1/tokenize", "/v1/detokenize", "/tokenize", "/detokenize", "/v1/responses", "/v1/messages",
        "/v1/messages/count_tokens", "/v1/audio/transcriptions", "/v1/realtime",
        "/generate", "/encode", "/classify", "/parse_function_call", "/separate_reasoning",
        "/model_info", "/get_model_info", "/ready", "/health_generate", vllm_guard.SELF_CHECK,
    )
)  # fmt: skip
BELOW = ("/v1/models/", "/v1/responses/")
# A data URI whose content can be no path.
DATA = re.compile(r"data:[\w.+-]+/[\w.+-]+(?:;[\w.+-]+=[\w.+-]+)*;base64,[A-Za-z0-9+/=]*", re.ASCII)
NOTHING = {"prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": 0}
MEDIA = ("image_data", "video_data", "audio_data")


def level(path: str, root: str) -> int:
    """What a route needs, as SGLang's router sees it."""
    routed = path
    if root and (path == root or path.startswith(root.rstrip("/") + "/")):
        routed = path[len(root.rstrip("/")) :]
    if routed in vllm_guard.OPEN_ROUTES:
        return vllm_guard.OPEN
    if routed in ("/metrics", "/v1/loads"):
        return vllm_guard.METRICS
    is_inference = routed in INFERENCE or routed.startswith(BELOW)
    return vllm_guard.INFERENCE if is_inference else vllm_guard.ADMIN


LEVELS = {route: level(route, "") for route in (*INFERENCE, *vllm_guard.OPEN_ROUTES, "/metrics")}


class Counter:
    """Put before the method by which everything is asked; as vLLM's, but outputs hold all tokens so far."""

    def __init__(self, manager: Any) -> None:
        self.manager = manager

    @classmethod
    def put_before(cls, manager: Any) -> Counter | None:
        """None where this is no engine that is known."""
        method = getattr(manager, "generate_request", None)
        if not callable(method):
            return None
        counter = cls(manager)
        manager.generate_request = counter.asking(method)
        return counter

    def asking(self, method: Any) -> Any:
        def ask(asked: Any, *rest: Any, **words: Any) -> Any:
            call = CALL.get()
            if call is None:
                return method(asked, *rest, **words)
            asked.priority = None  # a client's own is not for a client to choose
            question = Asked(call, len(getattr(asked, "input_ids", None) or ()))
            call.asked[str(id(question))] = question
            return counted(method(asked, *rest, **words), question)

        return ask

    @staticmethod
    def is_waiting(question: Question) -> bool:
        """Whether the engine has not made a token yet; of an answer in one piece that shows only at its end."""
        return not question.has_begun


class Asked(Question):
    """One call of the engine's; each of its answers counts for itself."""

    __slots__ = ("told",)

    def __init__(self, call: Call, tokens: int) -> None:
        super().__init__(call, tokens)
        self.told: dict[str, dict[str, int]] = {}

    def note(self, output: Any) -> None:
        self.has_begun = True
        for each in output if isinstance(output, list) else [output]:
            meta = each.get("meta_info") or {}
            name = str(meta.get("id"))
            before = self.told.get(name, NOTHING)
            now = self.told[name] = {key: max(old, meta.get(key) or 0) for key, old in before.items()}
            self.call.prompt += now["prompt_tokens"] - before["prompt_tokens"]
            self.call.cached += now["cached_tokens"] - before["cached_tokens"]
            self.call.completion += now["completion_tokens"] - before["completion_tokens"]


async def counted(outputs: Any, question: Asked) -> AsyncIterator[Any]:
    """The same outputs, each of them noted."""
    call = question.call
    try:
        async for output in outputs:
            is_first = not question.has_begun
            try:
                question.note(output)
                if is_first and call.begun:
                    call.begun(call)
                if is_first or call.completion >= TELL_EVERY:
                    call.tell(call)
            except Exception as error:  # of whatever kind: the answer is worth more than its tokens' number
                question.complain(error)
            yield output
    finally:
        await outputs.aclose()
        if call.is_over:
            call.tell(call)


class SglangMeter(Meter):
    counting = staticmethod(Counter.put_before)


class Guard(vllm_guard.Guard):
    levels = LEVELS
    level = staticmethod(level)
    metering = SglangMeter


def put_guard(app: Any) -> list[Guard]:
    """Outermost, whatever SGLang adds until the first request; the guard itself, once there is one."""
    build, made = app.build_middleware_stack, list[Guard]()

    def guarded() -> Guard:
        made.append(Guard(build()))
        return made[0]

    app.build_middleware_stack = guarded
    return made


def hand_in(uvicorn: Any, listener: socket.socket, server: Any) -> None:
    """The web server takes the socket that is there already; it and the engine are known to the guard."""

    class Server(uvicorn.Server):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            config.app.state.server = self
            config.app.state.engine_client = server._global_state.tokenizer_manager

        def run(self, sockets: object = None) -> None:
            super().run(sockets=[listener])

    uvicorn.Server = Server


def end_by(guards: list[Guard], handler: Any) -> None:
    """SGLang puts its own way of ending in the place of ours with its first request."""
    own = handler.sigterm_handler

    def sigterm_handler(self: Any, *words: Any, **named: Any) -> None:
        drain = guards[0].drain if guards else None
        drain.begin() if drain else own(self, *words, **named)

    handler.sigterm_handler = sigterm_handler


def check_media(manager: Any, domains: Iterable[str]) -> None:
    """No request makes the service read a file, or fetch from where it should not."""
    real, allowed = manager.generate_request, frozenset(domain.lower().rstrip(".") for domain in domains)

    async def generate_request(self: Any, asked: Any, *rest: Any, **words: Any) -> AsyncIterator[Any]:
        for name in MEDIA:
            refuse_paths(getattr(asked, name, None), allowed)
        async for output in real(self, asked, *rest, **words):
            yield output

    manager.generate_request = generate_request


def refuse_paths(media: Any, allowed: frozenset[str]) -> None:
    if isinstance(media, str):
        if not DATA.fullmatch(media) and not is_allowed(media, allowed):
            raise ValueError("an image, video or sound comes as a data URI in base64, or from a domain that is allowed")
    elif isinstance(media, dict):
        refuse_paths(list(media.values()), allowed)
    elif isinstance(media, (list, tuple)):
        for each in media:
            refuse_paths(each, allowed)
    elif isinstance(url := getattr(media, "url", None), str):
        refuse_paths(url, allowed)


def is_allowed(url: str, allowed: frozenset[str]) -> bool:
    """By SGLang itself its redirects are held to the same domains."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and (parts.hostname or "").rstrip(".") in allowed
    except ValueError:
        return False


def main(words: list[str]) -> NoReturn:
    listener = socket.socket(fileno=int(os.environ.pop(LISTENER)))
    listener.set_inheritable(False)
    vllm_door.hand_on()
    import uvicorn
    from sglang.launch_server import run_server  # type: ignore[import-not-found]
    from sglang.srt.entrypoints import http_server  # type: ignore[import-not-found]
    from sglang.srt.managers import tokenizer_manager  # type: ignore[import-not-found]
    from sglang.srt.server_args import prepare_server_args  # type: ignore[import-not-found]

    arguments = prepare_server_args(words)
    guards = put_guard(http_server.app)
    hand_in(uvicorn, listener, http_server)
    end_by(guards, tokenizer_manager.SignalHandler)
    # It would ask for that itself, without a key, at the end of each start.
    http_server._freeze_gc_after_server_warmup = lambda *_: None
    check_media(tokenizer_manager.TokenizerManager, arguments.allowed_media_domains)
    run_server(arguments)
    sys.exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
