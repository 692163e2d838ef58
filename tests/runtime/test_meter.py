"""Limits and usage over the real guard: clocks are set by hand, the engine is one like vLLM's."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from installer.base.assets import RUNTIME
from installer.runtime import vllm_usage
from tests.kit.metered import Engine, Metered
from tests.runtime.test_guard import guard_module as guard_module

Make = Callable[..., Metered]


@pytest.fixture
def make(guard_module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    def made(engine: Any = None, **variables: str) -> Metered:
        places = {"RUNTIME_DIRECTORY": str(tmp_path), "STATE_DIRECTORY": str(tmp_path), "LIMITS": f"{tmp_path}/limits"}
        for name, value in (places | variables).items():
            monkeypatch.setenv(name, value)
        return Metered(guard_module, tmp_path, engine or Engine()).start()

    return made


@pytest.mark.parametrize("is_limited", [True, False])
def test_where_the_engine_is_dead_nobody_s_answer_is_begun(make: Make, *, is_limited: bool) -> None:
    """A stream would be, and broken off: behind a gateway all would come here, as nowhere is less under way."""

    async def run() -> None:
        engine = Engine()
        server = make(engine)
        server.limit("a requests=600\n" if is_limited else "")
        server.guard.drain = began = Began()
        assert (await server.answered(stream=True)).status == 200
        engine.errored = True
        refused = await server.answered(stream=True)
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert json.loads(refused.text)["error"]["code"] == "engine_dead"
        assert began.times == 1, "the next one answers whoever connects from now on"
        assert (await server.answered("probe")).status == 200, "the watcher's question goes to the engine itself"

    asyncio.run(run())


class Began:
    times = 0

    def begin(self) -> None:
        self.times += 1


async def offered(server: Metered, seconds: int, each: int, key: str = "a", **body: Any) -> list[list[int]]:
    """The status of each request, by second, of so many in every second."""
    found = []
    for _ in range(seconds):
        found.append([(await server.answered(key, **body)).status for _ in range(each)])
        server.second += 1
    return found


def passed(answers: list[list[int]]) -> int:
    return sum(second.count(200) for second in answers)


# Each limit, at its value


@pytest.mark.parametrize(("limit", "each"), [(600, 20), (60, 3), (7, 1)])
def test_requests_a_minute_are_those_and_no_more(make: Make, limit: int, each: int) -> None:
    async def run() -> None:
        server = make()
        server.limit(f"a requests={limit}\n")
        answers = await offered(server, 240, each)
        for minute in range(4):
            assert limit * 0.95 <= passed(answers[minute * 60 : minute * 60 + 60]) <= limit * 1.05
        assert max(passed(answers[at : at + 60]) for at in range(180)) <= limit * 1.05, "in any minute"
        assert {status for second in answers for status in second} == {200, 429}
        assert passed(await offered(server, 3, 250, "b")) == 750, "another key has no part in it"
        assert server.used().refused == sum(second.count(429) for second in answers)
        assert server.used("b").refused == 0

    asyncio.run(run())


def test_tokens_a_minute_are_those_of_prompts_and_answers(make: Make) -> None:
    async def run() -> None:
        server = make()
        server.limit("a tokens=100000\n")
        answers = await offered(server, 180, 20, prompt=150, tokens=50)
        for minute in range(3):
            assert 95_000 <= passed(answers[minute * 60 : minute * 60 + 60]) * 200 <= 105_000
        assert passed(await offered(server, 2, 50, "b", prompt=2000, tokens=1)) == 100

    asyncio.run(run())


def test_a_long_answer_counts_while_it_is_being_made(make: Make) -> None:
    async def run() -> None:
        server = make()
        server.limit("a tokens=100\n")
        streaming = server.ask(stream=True, prompt=10, tokens=500, stops_at=200)
        await streaming.until(200)
        assert (await server.answered()).status == 429
        await streaming.hang_up()

    asyncio.run(run())


def test_who_is_told_to_come_again_may_then(make: Make) -> None:
    async def run() -> None:
        server = make()
        server.limit("a requests=5\nb tokens=100\n")
        for _ in range(5):
            assert (await server.answered()).status == 200
            server.second += 3
        refused = await server.answered()
        wait = int(refused.headers["retry-after"])
        assert wait == 60 - 15
        server.second += wait - 1
        assert (await server.answered()).status == 429
        server.second += 1
        assert (await server.answered()).status == 200
        assert (await server.answered("b", prompt=99, tokens=5)).status == 200
        assert (await server.answered("b")).headers["retry-after"] == "60"

    asyncio.run(run())


def test_a_budget_is_a_month_s_and_a_new_one_begins_with_the_next(make: Make) -> None:
    async def run() -> None:
        server = make()
        server.limit("a budget=1000\n")
        server.wall = 1_796_000_000.0  # the last of November 2026, in the morning
        for day in range(4):
            server.wall -= 86400 * (day == 3)
            assert (await server.answered(prompt=200, tokens=50)).status == 200
            server.wall += 86400 * (day == 3)
        refused = await server.answered()
        assert refused.status == 429
        assert json.loads(refused.text)["error"]["code"] == "insufficient_quota"
        left = int(refused.headers["retry-after"])
        assert 1_796_000_000 + left == 1_796_083_200, "the first of December"
        server.wall += left - 1
        assert (await server.answered()).status == 429
        server.wall += 1
        assert (await server.answered()).status == 200
        server.wall -= 86400
        assert (await server.answered()).status == 429, "a clock that goes back gives nothing"
        assert (await server.answered("b")).status == 200

    asyncio.run(run())


def test_so_many_at_once_and_no_more(make: Make) -> None:
    async def run() -> None:
        server = make()
        server.limit("a concurrent=3\n")
        busy = [server.ask(stream=True, tokens=9, stops_at=1) for _ in range(3)]
        for each in busy:
            await each.until(1)
        refused = await server.answered()
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        assert (await server.answered("b")).status == 200
        await busy[0].hang_up()
        assert (await server.answered()).status == 200
        assert (await server.answered("a", path="/broken-not", tokens=1)).status == 200
        with pytest.raises(RuntimeError):
            await server.answered(path="/broken")
        for each in busy[1:]:
            await each.hang_up()
        again = [server.ask(stream=True, tokens=9, stops_at=1) for _ in range(4)]
        await asyncio.gather(*(each.until(1) for each in again[:3]), again[3].end())
        assert [each.status for each in again] == [200, 200, 200, 429]
        for each in again:
            await each.hang_up()

    asyncio.run(run())


# What holds a table open as another API server of the service does; says so, and waits.
OTHER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from vllm_usage_table import Table
table = Table(sys.argv[2])
{doing}
print("ready", flush=True)
sys.stdin.read()
"""


def other(place: Path, doing: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-B", "-c", OTHER.format(doing=doing), str(RUNTIME), str(place)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


@contextlib.contextmanager
def beside(place: Path, doing: str) -> Any:
    process = other(place, doing)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_requests_at_once_are_those_of_all_processes_that_live(make: Make, tmp_path: Path) -> None:
    async def run() -> None:
        server = make()
        server.limit("a concurrent=3\n")
        assert (await server.answered()).status == 200
        with beside(tmp_path, "table.change('a', lambda record: table.begin('a', 3))") as process:
            server.second += 1
            assert (await server.answered()).status == 429
            process.send_signal(signal.SIGSTOP)
            server.second += 1
            assert (await server.answered()).status == 429, "it may go on"
            process.kill()
            process.wait()
            assert (await server.answered()).status == 200

    asyncio.run(run())


def test_the_minute_is_that_of_all_processes(make: Make, tmp_path: Path) -> None:
    async def run() -> None:
        server = make()
        server.limit("a requests=10\n")
        doing = "table.clock = lambda: 1001.0\nfor _ in range(8): table.change('a', lambda r: r.add_recent(1, 0))"
        with beside(tmp_path, doing):
            assert [(await server.answered()).status for _ in range(3)] == [200, 200, 429]

    asyncio.run(run())


# The file of limits


def test_a_limit_is_in_force_a_second_after_it_was_written(make: Make) -> None:
    async def run() -> None:
        server = make()
        assert passed(await offered(server, 1, 5)) == 5
        server.limit("a requests=2\n")
        assert passed(await offered(server, 1, 5)) == 2
        server.limit("b requests=2\n")
        assert passed(await offered(server, 1, 5)) == 5
        (server.place / "limits").unlink()
        server.second += 1
        assert passed(await offered(server, 1, 5, "b")) == 5

    asyncio.run(run())


@pytest.mark.parametrize(
    "line", ["a requests=0", "a requests=-1", "a requests=many", "a requests", "a request=1", "a requests=1 requests=2",
             "a requests=٣", "A requests=1", "a priority=highest", "a requests=99999999999999999999"],
)  # fmt: skip
def test_a_line_that_says_no_limit_limits_nobody_and_is_told_of(
    make: Make, caplog: pytest.LogCaptureFixture, line: str
) -> None:
    async def run() -> None:
        server = make()
        server.limit(f"# ours\n{line}\n\nb requests=1\n")
        assert passed(await offered(server, 1, 3)) == 3
        assert passed(await offered(server, 1, 3, "b")) == 1
        assert sum("1 lines of" in said for said in caplog.messages) == 1

    asyncio.run(run())


def test_limits_that_cannot_be_read_stay_as_they_were(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        server = make()
        server.limit("a requests=2\n")
        assert passed(await offered(server, 1, 5)) == 2
        (server.place / "limits").unlink()
        (server.place / "limits").mkdir()
        server.second += 60
        assert passed(await offered(server, 1, 5)) == 2
        assert any("stay as they were" in said for said in caplog.messages)

    asyncio.run(run())


# What a refusal looks like, and who is never refused


def test_a_refusal_is_what_clients_expect_and_one_line_in_the_journal(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        server = make()
        server.limit("a requests=1\n")
        await server.answered()
        refused = await server.answered()
        error = json.loads(refused.text)["error"]
        assert error == {
            "message": "This API key may make 1 requests a minute.", "type": "rate_limit_error", "param": None,
            "code": "rate_limit_exceeded",
        }  # fmt: skip
        assert int(refused.headers["content-length"]) == len(refused.text)
        line = "refused POST '/v1/completions' from 192.0.2.7: the key a: This API key may make 1 requests a minute."
        assert line in caplog.messages
        assert not refused.was_read, "the body of a refused request is not waited for"
        (close,) = (await server.answered(path="/v1/realtime", type="websocket")).sent
        assert close == {"type": "websocket.close", "code": 1013, "reason": ""}

    asyncio.run(run())


def test_the_watcher_and_who_only_looks_are_not_counted(make: Make) -> None:
    async def run() -> None:
        server = make(MAX_QUEUED="1")
        server.limit("probe requests=1\na requests=1\n")
        assert passed(await offered(server, 1, 5, "probe")) == 5
        assert passed(await offered(server, 1, 5, path="/v1/models", method="GET")) == 5
        assert server.table.totals() == []

    asyncio.run(run())


def test_a_key_and_its_successor_are_one_account(make: Make) -> None:
    async def run() -> None:
        server = make()
        server.limit("a requests=3\n")
        assert passed(await offered(server, 1, 2)) == 2
        assert passed(await offered(server, 1, 2, "a-old-2")) == 1
        assert server.used().requests == 3
        assert server.used("a-old-2") is None

    asyncio.run(run())


@pytest.mark.parametrize(("policy", "seen"), [("priority", [0, -1, 0]), ("fcfs", [0, 0, 0])])
def test_the_priority_is_the_key_s_and_never_the_client_s(make: Make, policy: str, seen: list[int]) -> None:
    async def run() -> None:
        server = make(Engine(policy))
        await server.answered(priority=-9)
        server.limit("a priority=high\n")
        await server.answered(priority=5)
        await server.answered("b", priority=-5)
        assert server.engine.priorities == seen

    asyncio.run(run())


# Usage


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 3])
def test_what_is_used_is_counted(make: Make, stream: bool, n: int) -> None:
    async def run() -> None:
        server = make()
        answered = await server.answered(stream=stream, n=n, prompt=11, tokens=70, cached=8)
        assert sum(map(int, answered.text.split())) == 70 * n
        assert server.used() == (1, 0, 0, 11, 8, 70 * n)

    asyncio.run(run())


def test_outputs_that_repeat_those_before_are_counted_once(make: Make) -> None:
    async def run() -> None:
        server = make()
        await server.answered(kind="CUMULATIVE", prompt=4, tokens=40, n=2)
        assert server.used() == (1, 0, 0, 4, 0, 80)

    asyncio.run(run())


@pytest.mark.parametrize("stream", [True, False])
def test_what_was_made_for_a_client_who_hung_up_counts_as_well(make: Make, stream: bool) -> None:
    async def run() -> None:
        server = make()
        asked = server.ask(stream=stream, prompt=6, tokens=50, stops_at=20, n=2)
        while not any(state.made == 20 for state in server.engine.output_processor.request_states.values()):
            await asyncio.sleep(0)
        await asked.hang_up()
        assert server.used() == (1, 0, 0, 6, 0, 40)

    asyncio.run(run())


def test_errors_are_the_server_s_answers_and_not_clients_who_leave(make: Make) -> None:
    async def run() -> None:
        server = make()
        await server.answered(path="/nowhere")
        with pytest.raises(RuntimeError):
            await server.answered(path="/broken")
        asked = server.ask(stream=True, tokens=5, stops_at=2)
        await asked.until(2)
        await asked.hang_up()
        assert server.used()[:3] == (3, 2, 0)

    asyncio.run(run())


def test_with_an_engine_that_is_not_known_requests_are_counted(
    make: Make, guard_module: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        server = make()
        assert vllm_usage.knows_tokens((tmp_path / "usage").read_bytes())
        server = make(object())
        await server.answered(path="/v1/embeddings")
        assert server.used() == (1, 0, 0, 0, 0, 0)
        assert any("tokens are not counted" in said for said in caplog.messages)
        assert not vllm_usage.knows_tokens((tmp_path / "usage").read_bytes())

    asyncio.run(run())


def test_of_500_requests_and_50_cut_streams_every_token_is_counted(make: Make) -> None:
    """Over a web server and real connections; a stream that is cut had made as much as its client has."""

    async def run() -> None:
        import uvicorn

        server = make()
        listener = socket.create_server(("127.0.0.1", 0))
        web = uvicorn.Server(
            uvicorn.Config(server.guard, interface="asgi3", http="h11", lifespan="off", log_level="warning")
        )
        serving = asyncio.ensure_future(web.serve(sockets=[listener]))
        clients, chance = asyncio.Semaphore(16), random.Random(7)
        bodies = [plan(number, chance) for number in range(500)]
        counted = await asyncio.gather(*(client(listener.getsockname()[1], clients, key, body) for key, body in bodies))
        while any(server.table.totals()) and sum(each[1].requests for each in server.table.totals()) < 500:
            await asyncio.sleep(0.01)
        for key in "ab":
            mine = [(body, count) for (name, body), count in zip(bodies, counted, strict=True) if name == key]
            prompt, made = sum(body["prompt"] for body, _ in mine), sum(count for _, count in mine)
            assert server.used(key) == (len(mine), 0, 0, prompt, 0, made)
        assert server.engine.made == {
            "prompt": sum(body["prompt"] for _, body in bodies), "completion": sum(counted),
        }  # fmt: skip
        web.should_exit = True
        await serving

    asyncio.run(run())


def plan(number: int, chance: random.Random) -> tuple[str, dict[str, Any]]:
    tokens = chance.randint(2, 90)
    body = {"prompt": chance.randint(1, 400), "tokens": tokens, "n": chance.choice((1, 1, 2))}
    if number % 10 == 0:
        body |= {"stream": True, "stops_at": chance.randint(1, tokens - 1), "n": 1}
    else:
        body["stream"] = chance.random() < 0.5
    return chance.choice("ab"), body


async def client(port: int, allowed: asyncio.Semaphore, key: str, body: dict[str, Any]) -> int:
    """The tokens that came; one whose stream stops hangs up."""
    text, count = json.dumps(body), 0
    async with allowed:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer sk-{key}\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Length: {len(text)}\r\n\r\n{text}".encode())
        status, *headers = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        assert " 200 " in status
        is_chunked = "transfer-encoding: chunked" in headers
        while body.get("stops_at") is None or count < body["stops_at"]:
            if not is_chunked:
                count = int(await reader.read())
                break
            size = int(await reader.readline(), 16)
            count += sum(map(int, (await reader.readexactly(size + 2)).split()))
            if not size:
                break
        writer.close()
    return count


# How many wait for their first token


@pytest.mark.parametrize("stream", [True, False])
def test_beyond_so_many_that_wait_for_a_first_token_others_are_told_to_come_again(make: Make, stream: bool) -> None:
    async def run() -> None:
        server = make(MAX_QUEUED="4")
        server.engine.may_begin.clear()
        waiting = [server.ask(stream=stream, tokens=60, stops_at=50) for _ in range(4)]
        for _ in range(20):
            await asyncio.sleep(0)
        refused = await server.answered("b")
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert json.loads(refused.text)["error"]["code"] == "queue_full"
        server.engine.may_begin.set()
        while any(state.is_prefilling for state in server.engine.output_processor.request_states.values()):
            await asyncio.sleep(0)
        assert (await server.answered("b")).status == 200, "who has a first token waits no more, streaming or not"
        assert server.used("b")[:3] == (1, 0, 1)
        for each in waiting:
            await each.hang_up()
        assert not server.guard.meter.queue._waiting

    asyncio.run(run())


def test_those_who_wait_in_other_processes_count_and_those_of_dead_ones_do_not(make: Make, tmp_path: Path) -> None:
    async def run() -> None:
        server = make(MAX_QUEUED="4")
        with beside(tmp_path, "table.ready(table.clock()); table.publish(4, 0, 0)") as process:
            server.second += 1
            assert (await server.answered()).status == 503
            process.kill()
            process.wait()
            assert (await server.answered()).status == 200

    asyncio.run(run())


def test_who_would_wait_too_long_for_a_first_token_is_told_when_to_come_again(make: Make, tmp_path: Path) -> None:
    async def run() -> None:
        server = make(TTFT="2s")
        with beside(tmp_path, "table.ready(table.clock()); table.publish(1, 5000, 1000)"):
            server.second += 1
            refused = await server.answered()
            assert (refused.status, refused.headers["retry-after"]) == (503, "3")
        with beside(tmp_path, "table.ready(table.clock()); table.publish(1, 1900, 1000)"):
            server.second += 1
            assert (await server.answered()).status == 200

    asyncio.run(run())


def test_where_no_rate_is_known_nobody_is_refused_for_it(make: Make) -> None:
    async def run() -> None:
        server = make(TTFT="1ms")
        server.engine.may_begin.clear()
        waiting = server.ask(prompt=100_000)
        for _ in range(20):
            await asyncio.sleep(0)
        asked = server.ask("b")
        server.engine.may_begin.set()
        assert (await asked.end()).status == 200
        await waiting.end()

    asyncio.run(run())


def test_long_prompts_say_more_of_the_rate_than_short_ones(guard_module: Any) -> None:
    rate = sys.modules["vllm_queue"].Rate()
    for second in range(100):
        rate.begin(second)
        rate.done(10, second + 0.02, is_last=True)  # 500 a second: what took so long was not the prompt
    rate.begin(200)
    rate.done(30_000, 203, is_last=True)
    assert 9_500 <= rate.value <= 10_000
    rate.begin(300)
    for second in range(301, 331):
        rate.done(5_000, second, is_last=False)  # nobody stops asking
    assert 5_000 <= rate.value <= 6_500


# Prometheus


def test_counters_stand_behind_the_server_s_own_metrics(make: Make) -> None:
    async def run() -> None:
        server = make()
        await server.answered(prompt=11, tokens=7)
        plain = await server.answered("prom", path="/metrics", method="GET", headers={"accept-encoding": "gzip"})
        assert int(plain.headers["content-length"]) == len(plain.text)
        assert plain.text.startswith("# TYPE vllm:x counter\nvllm:x 1\n# HELP vllm_install_requests_total ")
        assert '\nvllm_install_completion_tokens_total{key="a"} 7\n' in plain.text
        assert '\nvllm_install_prompt_tokens_total{key="a"} 11\n' in plain.text
        form = {"accept": "application/openmetrics-text; version=1.0.0"}
        text = (await server.answered("prom", path="/metrics", method="GET", headers=form)).text
        assert text.endswith("\n# EOF\n")
        assert text.count("# EOF") == 1
        assert "# TYPE vllm_install_requests counter\n" in text
        assert '\nvllm_install_requests_total{key="a"} 1\n' in text
        assert (await server.answered("prom", path="/metrics", method="POST")).status == 200

    asyncio.run(run())


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
