"""`bench` without an engine: what its figures mean, what they speak for, how they are kept, compared and drawn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from installer.acceptance import bench, bench_shown, compared, measured
from installer.acceptance.apitest import Subject
from installer.acceptance.bench_advice import advice, knee
from installer.acceptance.bench_picture import decades, draw, linear, short
from installer.acceptance.bench_subject import Bench, Wishes, check_family
from installer.acceptance.measured import Latency, Load, Machine, Measured, Served, Step, of_text, step_of, to_text
from installer.base.assets import RUNTIME
from installer.base.errors import Interrupted, Refused, UsageError
from installer.base.host import Host
from installer.base.layout import Layout
from installer.base.report import Report
from installer.cli import cli
from installer.spec.record import UNREADABLE
from installer.spec.settings import Settings
from installer.spec.target import Target
from installer.units.api import Api
from tests.kit.boot.surroundings import REPO
from tests.kit.certificates import certificate

RECORDED = REPO / "tests/fixtures/bench/vllm-0.32.0.json"  # what the real one gave, with 1, 4 and 16 at once
LAYOUT = Layout("qwen3vl")
NONE = Latency(1, 2, 3, 4)
SERVED = Served(
    "qwen3vl", "builtin:tiny", "a" * 40, "vLLM", "0.32.0", "cuda", "id", "2.13.0", "python3.11", "0.1.0", {}, 32768,
    None, 1, False, 131072,
)  # fmt: skip
MACHINE = Machine("a processor", 2, 1 << 34, "6.1", ("a GPU, 80 GiB, 1.0",), 0)
LOAD = Load(512, 128, {"ttft": 1000.0, "tpot": 50.0}, 45, 1)


def step(concurrency: int, tokens: float, good: float = 0.0, **more: float) -> Step:
    return replace(Step(concurrency, 8, 8, 0, 45, tokens / 128, good, tokens, 5 * tokens, *[NONE] * 4), **more)  # type: ignore[arg-type]


def result(*steps: Step, at: str = "20261129T153400Z", ended: str = "done") -> Measured:
    return Measured(at, SERVED, MACHINE, LOAD, steps, ended)


GROWING = result(step(1, 100, 0.8), step(4, 350, 2.7), step(16, 900, 7))


# What the engine's bench says


def test_figures_of_the_real_one_are_read() -> None:
    found = [step_of(each["max_concurrency"], each["num_prompts"], each) for each in json.loads(RECORDED.read_text())]
    assert [each.concurrency for each in found] == [1, 4, 16]
    for each in found:
        assert (each.completed, each.failed, each.error) == (each.prompts, 0, "")
        assert each.seconds > 0
        assert each.tokens == pytest.approx(each.requests * 16, rel=0.01)  # it was asked for answers of so many
        assert 0 < each.good_requests <= each.requests
        assert each.tokens_for_one == each.tokens / each.concurrency
        for latency in (each.ttft, each.tpot, each.itl, each.whole):
            assert 0 < latency.p50 <= latency.p90 <= latency.p95 <= latency.p99
        assert each.whole.p99 > each.ttft.p50


@pytest.mark.parametrize("value", [None, "x", float("nan"), float("inf"), [], {}])
def test_what_is_no_number_is_none(value: object) -> None:
    found = step_of(1, 2, {"completed": 2, "p50_ttft_ms": value, "output_throughput": value, "duration": 1})
    assert (found.tokens, found.ttft.p50, found.completed) == (0.0, 0.0, 2)


# The ladder


@pytest.mark.parametrize(
    ("tokens", "concurrency", "rate", "why"),
    [
        ((), 1, 0.001, ""),  # one step there is always
        ((100, 350), 16, 2.7, ""),
        ((100, 350, 355), 64, 2.7, ""),  # one that brings no more may be chance
        ((100, 350, 355, 340), 256, 20, "full"),
        ((100, 350, 355, 500), 64, 20, ""),
        ((100, 110), 64, 0.1, "slow"),  # two rounds of 64 would take 1280 seconds
    ],
)
def test_the_ladder_ends_where_more_say_nothing_new(
    tokens: tuple[float, ...], concurrency: int, rate: float, why: str
) -> None:
    so_far = result(*(step(2**number, each) for number, each in enumerate(tokens)))
    assert bench.enough(so_far, concurrency, rate) == why


def test_a_step_takes_about_its_time_and_each_asks_twice() -> None:
    assert bench.prompts(1, 1, 0.5, 45) == 22
    assert bench.prompts(4, 1, 0.5, 45) == 45  # between as fast as before and four times that
    assert bench.prompts(64, 16, 0.01, 45) == 128
    assert bench.prompts(1, 1, 0.001, 12) == 3


@pytest.mark.parametrize("measured_before", [0, 2])
def test_what_was_measured_outlives_an_interruption(
    measured_before: int, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def climb(*_: object) -> Iterator[Measured]:
        for count in range(measured_before):
            yield result(*GROWING.steps[: count + 1], ended="")
        raise Interrupted("SIGINT")

    monkeypatch.setattr(bench, "begin", lambda *_: result(ended=""))
    monkeypatch.setattr(bench, "climb", climb)
    what = Bench(Subject(Api("::1", 8000, None, 1), "m", 1024, ""), Target(Settings(), *[None] * 3), "", ())  # type: ignore[arg-type]
    if not measured_before:
        with pytest.raises(Interrupted):
            bench.run(what, Wishes(), host, Report())
        assert measured.names(LAYOUT, host) == []
        return
    with pytest.raises(Interrupted):  # a part is of no use to who judges a change by it
        bench.run(what, Wishes(), host, Report(), is_whole=True)
    found = bench.run(what, Wishes(), host, Report())
    assert found == result(*GROWING.steps[:2], ended="interrupted") == measured.latest(LAYOUT, host)
    assert "it was interrupted" in found.why_ended


def test_an_engine_without_a_bench_is_refused_by_its_name() -> None:
    with pytest.raises(Refused, match="bench does not know how to ask SGLang's own"):
        check_family(replace(Settings(), engine_family="sglang"))
    check_family(Settings())


# What it speaks for


def said(found: Measured) -> dict[str, tuple[str, str]]:
    return {each.about: (each.evidence, each.command) for each in advice(found)}


def test_where_all_is_well_nothing_is_advised() -> None:
    assert said(GROWING) == {}
    assert said(result()) == {}


def test_more_at_once_than_keep_the_goals_are_kept_away() -> None:
    found = said(result(step(1, 100, 0.8), step(16, 900, 7), step(64, 1000, 1.5)))
    evidence, command = found["MAX_NUM_SEQS"]
    assert "16 at once 7.00 requests/s" in evidence
    assert "64 at once 1.50" in evidence
    assert command == "sudo vllm-install deploy --service qwen3vl -- --max-num-seqs 16"


def test_what_is_advised_already_in_force_is_not_advised_again() -> None:
    steps = (step(1, 100, 0.8), step(16, 900, 7), step(64, 1000, 1.5))
    assert said(replace(result(*steps), served=replace(SERVED, most_at_once=16))) == {}
    two = replace(result(*steps), served=replace(SERVED, engines=2))
    assert said(two)["MAX_NUM_SEQS"][1].endswith("--max-num-seqs 8")  # each of the two


def test_who_waits_for_a_number_while_there_is_room_is_let_in() -> None:
    waiting = step(16, 900, 7, running=8, waiting=8, cache_used=0.3)
    found = replace(result(step(1, 100, 0.8), waiting), served=replace(SERVED, most_at_once=8, cache_tokens=None))
    evidence, command = said(found)["MAX_NUM_SEQS"]
    assert "8 waited, 8 ran, and 30% of the cache" in evidence
    assert command.endswith("--max-num-seqs 16")
    full = replace(found, steps=(*found.steps[:1], replace(waiting, cache_used=0.9)))
    assert said(full) == {}


@pytest.mark.parametrize(
    ("used", "waiting", "context", "tokens"),
    [(1.0, 5, 32768, 8192), (1.0, 0, 32768, None), (0.5, 5, 32768, None), (0.1, 0, 4096, 8192), (0.9, 0, 4096, None)],
)
def test_a_context_is_advised_by_what_the_cache_holds(
    used: float, waiting: int, context: int, tokens: int | None
) -> None:
    steps = (step(16, 900, 7, cache_used=0.1), step(17, 901, 6.9, running=16, waiting=waiting, cache_used=used))
    found = said(replace(result(*steps), served=replace(SERVED, context=context)))
    command = f"sudo vllm-install set-context {tokens} --service qwen3vl"
    assert [command for _, command in found.values()] == ([command] if tokens else [])


def test_another_engine_is_advised_where_there_is_a_gpu_for_it() -> None:
    steps = (step(1, 100, 0.8), step(16, 900, 7), step(64, 910, 7))
    found = said(replace(result(*steps), machine=replace(MACHINE, gpus_free=3)))
    assert found["REPLICAS"][1] == "sudo vllm-install set REPLICAS=4 --service qwen3vl"
    assert said(result(*steps)) == {}
    assert "REPLICAS" not in said(replace(GROWING, machine=replace(MACHINE, gpus_free=3)))
    assert knee(result(*steps)).concurrency == 16


def test_a_throwaway_server_is_told_no_command() -> None:
    steps = (step(1, 100, 0.8), step(16, 900, 7), step(64, 1000, 1.5))
    assert said(replace(result(*steps), served=replace(SERVED, service="")))["MAX_NUM_SEQS"][1] == ""


# As files


def test_what_is_kept_is_read_back(host: Host) -> None:
    path = measured.save(GROWING, LAYOUT, host)
    assert str(path) == "/var/lib/vllm-install/qwen3vl/bench/20261129T153400Z.json"
    later = replace(GROWING, at="20261130T090000Z", ended="interrupted")
    measured.save(later, LAYOUT, host)
    assert measured.load("20261129", LAYOUT, host) == GROWING
    assert measured.latest(LAYOUT, host) == later
    assert measured.history(LAYOUT, host) == [GROWING, later]
    for word, count in (("2026", "2 results are"), ("2027", "no result is"), ("", "2 results are")):
        with pytest.raises(UsageError, match=f"{count} called"):
            measured.load(word, LAYOUT, host)


def test_a_service_that_was_never_measured_is_told_how(host: Host) -> None:
    assert measured.history(LAYOUT, host) == []
    with pytest.raises(Refused, match="nothing of qwen3vl was measured yet") as raised:
        measured.latest(LAYOUT, host)
    assert raised.value.hint == "sudo vllm-install bench --service qwen3vl --quick"


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-20],
        lambda text: text.replace('"concurrency": 4', '"concurrency": 0'),
        lambda text: text.replace("350", "1e400"),
        lambda text: text.replace("350", "NaN"),
        lambda text: text.replace("350", "9" * 400),
        lambda text: text.replace("20261129T153400Z", "../../etc"),
        lambda text: "[" * 100_000,
        lambda text: "\udcff",
        lambda text: "{}",
    ],
)
def test_a_file_that_is_no_result_is_refused(damage: object, host: Host) -> None:
    assert callable(damage)
    host.write(Path("/tmp/x.json"), damage(to_text(GROWING)).encode(errors="replace").decode())
    with pytest.raises(UsageError, match="no result of bench"):
        measured.load("/tmp/x.json", LAYOUT, host)
    with pytest.raises(UsageError, match="there is no"):
        measured.load("/tmp/y.json", LAYOUT, host)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_whatever_json_it_is_it_is_read_or_refused(value: object) -> None:
    for text in (json.dumps(value), json.dumps({**json.loads(to_text(GROWING)), "steps": value})):
        try:
            of_text(text)
        except UNREADABLE:
            continue
        assert json.loads(text)["steps"] == []


# Side by side


def test_two_results_are_laid_side_by_side() -> None:
    served = replace(SERVED, version="0.33.0", settings={"PORT": "8001"})
    after = replace(result(step(4, 280, 2), step(16, 1000, 8), at="20261130T090000Z"), served=served)
    assert [pair.before.concurrency for pair in compared.pairs(GROWING, after)] == [4, 16]
    assert compared.slower(GROWING, after) == 0
    assert compared.slower(after, GROWING) == pytest.approx(0.1)
    assert compared.differences(GROWING, after) == [("version", "0.32.0", "0.33.0"), ("PORT", "-", "8001")]
    text = "\n".join(bench_shown.compared(GROWING, after))
    for words in ("unlike: version: 0.32.0 → 0.33.0", "-20%", "+11%"):
        assert words in text


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    slower = replace(
        GROWING, at="20261130T090000Z", steps=tuple(replace(s, tokens=s.tokens * 0.9) for s in GROWING.steps)
    )
    paths = [tmp_path / name for name in ("a.json", "b.json")]
    for path, each in zip(paths, (GROWING, slower), strict=True):
        path.write_text(to_text(each))
    return str(paths[0]), str(paths[1])


@pytest.mark.parametrize(("margin", "code"), [("5", 6), ("15", 0)])
def test_a_margin_is_kept_to(files: tuple[str, str], margin: str, code: int) -> None:
    done = CliRunner().invoke(cli, ["bench", "compare", *files, "--margin", margin])
    assert done.exit_code == code, done.output
    assert ("B is 10.0 % slower than A" in done.output) == bool(code)


def test_a_result_is_shown_and_drawn_from_a_file(files: tuple[str, str], tmp_path: Path) -> None:
    svg = tmp_path / "x.svg"
    done = CliRunner().invoke(cli, ["bench", "show", files[0], "--svg", str(svg)])
    assert done.exit_code == 0, done.output
    assert "qwen3vl: builtin:tiny (aaaaaaaa), vLLM 0.32.0 cuda, a GPU, 80 GiB, 1.0" in done.output
    assert ET.parse(svg).getroot().tag.endswith("svg")
    shown = json.loads(CliRunner().invoke(cli, ["bench", "show", files[0], "--json"]).output)
    assert (shown["at"], shown["advice"]) == (GROWING.at, [])
    printed = CliRunner().invoke(cli, ["bench", "show", files[0], "--svg", "-"]).output
    assert svg.read_text() in printed


@pytest.mark.parametrize("verb", [["show"], ["compare"]])
def test_a_picture_goes_over_a_file_and_through_no_link(
    files: tuple[str, str], tmp_path: Path, verb: list[str]
) -> None:
    own, precious, link = (tmp_path / name for name in ("own", "precious", "link"))
    own.write_text("of before")
    precious.write_text("root's")
    link.symlink_to(precious)
    words = ["bench", *verb, *(files if verb == ["compare"] else files[:1]), "--svg"]
    assert CliRunner().invoke(cli, [*words, str(own)]).exit_code == 0
    assert own.read_text().startswith("<svg")
    refused = CliRunner().invoke(cli, [*words, str(link)])
    assert isinstance(refused.exception, Refused), refused.output
    assert precious.read_text() == "root's"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--goodput", "ttft"], "no goal"), (["--goodput", "itl:5"], "no goal"), (["--goodput", "ttft:-5"], "no goal"),
        (["--concurrency", "1,x"], "no list"), (["--concurrency", "0"], "no list"), (["--concurrency", ""], "no list"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(words: list[str], said: str) -> None:
    done = CliRunner().invoke(cli, ["bench", *words])
    assert isinstance(done.exception, UsageError), done.output
    assert said in str(done.exception)


# The picture


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter() if element.tag.endswith("text")]


def test_the_picture_has_every_step_of_every_plot() -> None:
    drawn = texts(draw([GROWING]))
    for title in ("Until the first token (TTFT), ms", "Between two tokens (ITL), ms", "tokens/s for one user"):
        assert title in drawn
    for count in ("1", "4", "16"):
        assert drawn.count(count) >= 4  # at a point of three plots, below a bar of the fourth
    assert {"p50", "p90", "p99"} <= set(drawn)


def test_whatever_a_model_is_called_the_picture_is_xml() -> None:
    odd = replace(GROWING, served=replace(SERVED, model='<script>&"\x00\x1b\ufffe' + "long " * 60))
    assert any("<script>" in text for text in texts(draw([odd, odd])))
    assert texts(draw([result(step(1, 0.0))]))


@pytest.mark.parametrize("top", [1e-4, 0.5, 1, 7, 95, 100, 2.5e9])
def test_an_axis_reaches_beyond_all_and_has_few_steps(top: float) -> None:
    steps = linear([0, top])
    assert steps[0] == 0
    assert steps[-1] >= top
    assert 3 <= len(steps) <= 7
    low, *_, high = decades([top, 30 * top])
    assert low < top
    assert high >= 30 * top


def test_numbers_are_short() -> None:
    assert [short(value) for value in (0, 0.5, 20, 1500, 2e6)] == ["0", "0.5", "20", "1.5k", "2M"]


@pytest.mark.parametrize(
    ("name", "title", "engine"),
    [
        ("bench", "builtin:tiny: how fast", "vLLM 0.32.0 (cpu)"),
        ("bench.zh_CN", "builtin:tiny", "vLLM 0.32.0 (cpu)"),
        ("bench-h200", "qwen3-vl-8b: how fast", "NVIDIA H200"),
        ("bench-h200.zh_CN", "qwen3-vl-8b", "NVIDIA H200"),
    ],
)
def test_the_pictures_in_the_docs_are_of_a_real_run(name: str, title: str, engine: str) -> None:
    drawn = texts((REPO / f"docs/images/{name}.svg").read_text())
    assert title in drawn[0]
    assert engine in drawn[1]


# What runs on the engine's Python

VLLM = """
import argparse
FlexibleArgumentParser = argparse.ArgumentParser
def add_cli_args(parser):
    parser.add_argument("--base-url")
    parser.add_argument("--num-prompts", type=int)
def main(args):
    import aiohttp, os, sys
    print("noise without an end", end="", flush=True)
    if args.num_prompts == 13:
        raise ValueError("of two lines\\nthe second")
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False))
    seen = {"headers": str(session["headers"]), "ssl": type(session["connector"]["ssl"]).__name__,
            "proxies": [name for name in os.environ if "proxy" in name]}
    return {"completed": args.num_prompts, **{k: str(v) for k, v in seen.items()}, "home": os.environ["HOME"],
            "errors": ["", "Traceback\\nToo Many Requests"], "ttfts": [1.0]}
"""


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_each_step_is_run_and_the_key_is_nowhere_to_be_seen(tls: bool, tmp_path: Path) -> None:
    for name, text in {
        "vllm/benchmarks/__init__.py": "", "vllm/__init__.py": "", "vllm/benchmarks/serve.py": VLLM,
        "aiohttp.py": "def ClientSession(**more): return more\ndef TCPConnector(**more): return more\n",
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path), "http_proxy": "http://x"}
    process = subprocess.Popen(
        [sys.executable, RUNTIME / "vllm_bench.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, env=environment,
    )  # fmt: skip
    assert process.stdin
    assert process.stdout
    trusted = certificate(tmp_path)[0].read_text() if tls else None
    task = {"key": "sk-secret", "certificate": trusted, "words": ["--base-url", "http://x"]}
    found = []
    for line in (task, ["--num-prompts", "7"], ["--num-prompts", "13"]):
        process.stdin.write(json.dumps(line) + "\n")
        process.stdin.flush()
        found.append(next(json.loads(text) for text in process.stdout if text.startswith("{")))
        seen = [Path(f"/proc/{process.pid}/{name}").read_text() for name in ("cmdline", "environ")]
        assert "sk-secret" not in "".join(seen)
    ready, first, second = found
    assert ready == {"ready": True}
    home = Path(first["result"]["home"])
    assert home.is_dir()
    assert first["result"] == {
        "completed": 7, "headers": "{'Authorization': 'Bearer sk-secret'}", "proxies": "[]", "home": str(home),
        "ssl": "SSLContext" if tls else "bool", "error": "Too Many Requests",
    }  # fmt: skip
    assert second == {"error": "the second"}
    process.stdin.close()
    assert process.wait(180) == 0
    process.stdout.close()
    assert not home.exists()
