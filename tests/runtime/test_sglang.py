"""What makes SGLang's server one of ours: who gets through to which route, and what no request and no flag may do."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from installer.base.assets import RUNTIME
from installer.runtime import vllm_flags
from installer.runtime.vllm_flags import load_table
from installer.runtime.vllm_words import SGLANG

OPEN, METRICS, INFERENCE, ADMIN = range(4)


@pytest.fixture(scope="module")
def serve() -> Iterator[Any]:
    sys.path.insert(0, str(RUNTIME))
    before = set(sys.modules)
    yield importlib.import_module("sglang_serve")
    sys.path.remove(str(RUNTIME))
    for name in set(sys.modules) - before:
        if name.startswith(("vllm_", "sglang_")):
            del sys.modules[name]


# Flags


@pytest.mark.parametrize("flag", SGLANG.refused)
def test_what_would_go_round_the_guard_is_refused_however_it_is_written(flag: str) -> None:
    assert load_table(SGLANG.table).is_known(flag), "SGLang has it, or it could be had by a shorter name"
    for words in ([flag, "2"], [f"{flag}=2"], [flag.replace("-", "_").replace("__", "--", 1)]):
        found = vllm_flags.refused(["sglang", "--model-path", "/m", *words], SGLANG)
        assert found == (flag, SGLANG.refused[flag])


@pytest.mark.parametrize("word", ["--tokenizer-worker", "--enable-http2", "--grpc-p", "--use-r", "--api-k", "--conf"])
def test_the_beginning_of_a_flag_is_that_flag(word: str) -> None:
    assert vllm_flags.refused(["sglang", word, "2"], SGLANG)


def test_what_is_harmless_is_not_refused() -> None:
    words = (
        "sglang --model-path /m --context-length 1024 --chunked-prefill-size 512 --tp 2 --dp-size 1 --log-level info"
    )
    assert vllm_flags.refused(words.split(), SGLANG) is None
    assert vllm_flags.given(words.split(), SGLANG)["--tp-size"] == "2"


# Routes


@pytest.mark.parametrize(
    ("path", "needed"),
    [
        ("/health", OPEN), ("/ping", OPEN),
        ("/metrics", METRICS), ("/v1/loads", METRICS),
        ("/v1/chat/completions", INFERENCE), ("/v1/models", INFERENCE), ("/v1/models/org/name", INFERENCE),
        ("/generate", INFERENCE), ("/health_generate", INFERENCE), ("/is-this-guarded", INFERENCE),
        ("/flush_cache", ADMIN), ("/update_weights_from_disk", ADMIN), ("/abort_request", ADMIN),
        ("/server_info", ADMIN), ("/configure_logging", ADMIN), ("/load_lora_adapter", ADMIN), ("/docs", ADMIN),
        ("/metricsfoo", ADMIN), ("/metrics/", ADMIN), ("/health/", ADMIN), ("/V1/models", ADMIN), ("/new", ADMIN),
        ("//v1/models", ADMIN), ("", ADMIN),
    ],
)  # fmt: skip
def test_a_route_that_nobody_knows_is_an_admin_s(serve: Any, path: str, needed: int) -> None:
    assert serve.level(path, "") == needed
    assert serve.Guard.levels.get(path, needed) == needed


def test_below_a_root_path_the_same_holds(serve: Any) -> None:
    assert serve.level("/proxy/flush_cache", "/proxy") == ADMIN
    assert serve.level("/proxy/v1/models", "/proxy/") == INFERENCE
    assert serve.level("/proxyv1/models", "/proxy") == ADMIN


def test_the_guard_is_outermost_whatever_is_added_after_it(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/nonexistent")
    layers = ["router"]
    app = SimpleNamespace(build_middleware_stack=lambda: tuple(layers))
    made = serve.put_guard(app)
    layers.append("added later")
    stack = app.build_middleware_stack()
    assert isinstance(stack, serve.Guard)
    assert stack.app == ("router", "added later")
    assert made == [stack]


def test_a_stop_is_ours_also_after_the_first_request(serve: Any) -> None:
    begun: list[str] = []

    class Handler:
        def sigterm_handler(self) -> None:
            begun.append("SGLang's")

    guards: list[Any] = []
    serve.end_by(guards, Handler)
    Handler().sigterm_handler()
    guards.append(SimpleNamespace(drain=SimpleNamespace(begin=lambda: begun.append("ours"))))
    Handler().sigterm_handler()
    assert begun == ["SGLang's", "ours"]


# Images


@pytest.mark.parametrize(
    "media",
    [
        "file:///etc/passwd", "/etc/x.png", "x.png", "FILE:///etc/passwd", "https://elsewhere.example/x.png",
        "http://allowed.example@elsewhere.example/x.png", "http://[::1/x", "ftp://allowed.example/x", "iVBORw0KGgo=",
        "data:image/png;base64,AAAA/../../etc/x.png", "data:image/png;base64,AAAA.png", "data:text/plain,x", "data:",
        ["data:image/png;base64,AAAA", ["/etc/x.png"]], {"url": "/etc/x.png"}, SimpleNamespace(url="file:///etc/x.png"),
        ("data:image/png;base64,AAAA", SimpleNamespace(url="x.mp4")),
    ],
)  # fmt: skip
def test_no_request_makes_the_service_read_a_file(serve: Any, media: Any) -> None:
    with pytest.raises(ValueError, match="data URI"):
        serve.refuse_paths(media, frozenset({"allowed.example"}))


@pytest.mark.parametrize(
    "media",
    [
        None, [None], b"bytes", "data:image/png;base64,AAAA/+Zz==", "data:audio/wav;rate=8000;base64,AAAA",
        "https://allowed.example/x.png", ["http://Allowed.example:8080/x?y"],
        SimpleNamespace(url="data:image/png;base64,AAAA"), [[SimpleNamespace(url="https://allowed.example./x")]],
    ],
)  # fmt: skip
def test_what_comes_with_the_request_or_from_an_allowed_domain_is_taken(serve: Any, media: Any) -> None:
    serve.refuse_paths(media, frozenset({"allowed.example"}))


def test_every_way_to_the_engine_is_looked_at(serve: Any) -> None:
    class Manager:
        async def generate_request(self, asked: Any, request: Any = None) -> AsyncIterator[str]:
            yield asked.text

    serve.check_media(Manager, ["a.example"])

    async def ask(**media: Any) -> list[str]:
        return [each async for each in Manager().generate_request(SimpleNamespace(text="x", **media), None)]

    assert asyncio.run(ask(image_data=None)) == ["x"]
    for name in ("image_data", "video_data", "audio_data"):
        with pytest.raises(ValueError, match="data URI"):
            asyncio.run(ask(**{name: ["/etc/x"]}))


# Tokens


class Manager:
    def __init__(self, *outputs: Any) -> None:
        self.outputs = outputs

    async def generate_request(self, asked: Any, request: Any = None) -> AsyncIterator[Any]:
        for output in self.outputs:
            yield output


def output(name: str, prompt: int, cached: int, completion: int) -> dict[str, Any]:
    told = {"prompt_tokens": prompt, "cached_tokens": cached, "completion_tokens": completion}
    return {"text": "", "meta_info": {"id": name, **told}}


@pytest.mark.parametrize(
    ("outputs", "used"),
    [
        ([output("a", 5, 0, 1), output("a", 5, 0, 2), output("a", 5, 2, 9)], (5, 2, 9)),
        ([[output("a", 5, 1, 3), output("b", 7, 0, 4)]], (12, 1, 7)),
        ([output("a", 5, 0, 1), output("b", 5, 0, 1), output("a", 5, 0, 3)], (10, 0, 4)),
        ([], (0, 0, 0)),
        ([{"text": "", "meta_info": {"id": "e", "prompt_tokens": 4}}], (4, 0, 0)),  # of an embedding
    ],
)
def test_tokens_are_counted_once(serve: Any, outputs: list[Any], used: tuple[int, ...]) -> None:
    manager, told = Manager(*outputs), [0, 0, 0]

    def tell(call: Any) -> None:
        for place, count in enumerate(call.take()):
            told[place] += count

    assert serve.Counter.put_before(manager)
    call = serve.Call("key", tell)
    asked = SimpleNamespace(priority=7, input_ids=[1, 2])

    async def ask() -> None:
        serve.CALL.set(call)
        seen = [each async for each in manager.generate_request(asked)]
        assert seen == outputs
        tell(call)

    asyncio.run(ask())
    assert tuple(told) == used
    assert asked.priority is None, "that is not for a client to choose"


def test_whose_request_it_is_not_is_not_counted(serve: Any) -> None:
    manager = Manager("x")
    assert serve.Counter.put_before(manager)
    asked = SimpleNamespace(priority=7)

    async def ask() -> list[Any]:
        return [each async for each in manager.generate_request(asked)]

    assert asyncio.run(ask()) == ["x"]
    assert asked.priority == 7
    assert serve.Counter.put_before(SimpleNamespace()) is None
