"""All services on one screen: who hangs keeps up nobody, who goes is gone, and little room is enough."""

from __future__ import annotations

import dataclasses
import io
import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from installer.base.errors import Refused
from installer.base.host import Host
from installer.look import watch, watch_all
from installer.look.load import GpuUse, Sample
from installer.look.status import MemberStatus
from installer.look.watch import Frame
from installer.look.watch_all import GpuShare, Overview, overviews, rows, shares

GPU = GpuUse("NVIDIA H200", "GPU-1", 60 << 30, 140 << 30, 87)
LOAD = Sample(3.0, 1.0, 0.5, 1000.0, 100.0, 4096, {})
FRAME = Frame(
    at=1000.0, service="qwen3vl", active="active (running)", stage="serving", holding=None, model="m", because=None,
    running=3.0, waiting=1.0, cache_used=0.5, tokens_per_second=120.0, prompt_tokens_per_second=40.0,
    first_token={"p50": 0.25}, gpus=(GPU,), has_metrics=True,
)  # fmt: skip


def member(number: int, *, ready: bool = True) -> MemberStatus:
    return MemberStatus(
        number, f"big@{number}.service", "active (running)" if ready else "failed (failed)", ready,
        "serving" if ready else "", None, "", 1, 0, None, "http://127.0.0.1:1", (), None,
        "UP" if ready else "DOWN",
        LOAD if ready else None,
    )  # fmt: skip


BIG = dataclasses.replace(
    FRAME, service="big", gpus=(), members=tuple(member(number, ready=number != 7) for number in range(1, 65))
)


def test_a_service_has_its_figures_on_a_line_and_each_replica_on_one() -> None:
    found = rows(Overview(1001.0, (FRAME, BIG), ("new",), ()))
    assert found[0] == ("qwen3vl", "active, serving", "3 / 1", "120 / 40", "250 ms", "50%")
    assert found[2] == ("  replica 1", "active, serving", "3 / 1", "", "", "50%")
    assert found[8] == ("  replica 7", "failed; gateway: DOWN", "", "", "", "")
    assert (len(found), found[-1][:2]) == (1 + 1 + 64 + 1, ("new", "not seen yet"))


def test_where_the_screen_is_full_only_replicas_that_do_not_serve_are_named() -> None:
    overview = Overview(1001.0, (FRAME, BIG), (), (GpuShare(GPU, ("qwen3vl",)),))
    found = rows(overview, height=24)
    assert [row[0] for row in found] == ["qwen3vl", "big", "  63 replicas", "  replica 7"]
    assert len(rows(overview, height=200)) == 66


def test_what_is_of_before_says_so() -> None:
    late = rows(Overview(1000.0 + watch_all.OLD + 1, (FRAME,), (), ()))[0]
    assert late[1] == "active, serving; as of 7 s ago"


def test_every_gpu_of_the_host_is_there_with_who_has_it() -> None:
    other, gone, nameless = (
        GpuUse(name, uuid, 0, 0, None) for name, uuid in (("A", "GPU-2"), ("B", "GPU-3"), ("C", ""))
    )
    both = dataclasses.replace(FRAME, service="second", gpus=(GPU, gone))
    assert shares((GPU, other, nameless), [FRAME, both]) == (
        GpuShare(GPU, ("qwen3vl", "second")), GpuShare(gone, ("second",)), GpuShare(other, ()), GpuShare(nameless, ()),
    )  # fmt: skip


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_the_screen_loses_no_word_and_obeys_none(width: int) -> None:
    hostile = dataclasses.replace(FRAME, stage="[red]x[/red] 中文", because="[link=file:///x]y[/link]")
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=False)
    console.print(watch_all.screen(Overview(1001.0, (hostile,), ("new",), (GpuShare(GPU, ("qwen3vl",)),)), width, 50))
    text = out.getvalue()
    assert max(cell_len(line) for line in text.splitlines()) <= width
    together = "".join(text.split())
    for word in ("qwen3vl",) if width < 40 else ("qwen3vl", "NVIDIA", "87%busy"):
        assert word in together
    if width >= 80:
        assert "[red]x[/red]" in together


def test_nothing_at_all_is_said() -> None:
    out = io.StringIO()
    Console(file=out, width=80).print(watch_all.screen(Overview(0.0, (), (), ()), 80, 24))
    assert "no services yet" in out.getvalue()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_all, "EVERY", 0.05)
    monkeypatch.setattr(watch_all, "MODULES", {})


def test_one_that_hangs_keeps_up_no_other_and_one_that_goes_is_gone(
    host: Host, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    over = threading.Event()
    there = ["hangs", "good"]

    def frames(service: str, host: Host) -> Iterator[Frame]:
        while not over.is_set():
            if service == "hangs":
                over.wait()
                return
            if service not in there:
                raise Refused("it is not there")
            yield dataclasses.replace(FRAME, service=service)

    monkeypatch.setattr(watch, "frames", frames)
    monkeypatch.setattr(watch_all, "services", lambda _: list(there))
    moments = itertools.islice(overviews(host), 1000)

    def until(is_so: Callable[[Overview], object]) -> Overview:
        return next(seen for seen in moments if is_so(seen))

    try:
        first = until(lambda seen: seen.services)
        assert ([frame.service for frame in first.services], first.unseen) == (["good"], ("hangs",))
        there[:] = ["hangs", "later"]
        assert until(lambda seen: [frame.service for frame in seen.services] == ["later"])
        there[:] = []
        assert until(lambda seen: not seen.unseen)
    finally:
        over.set()


def test_a_line_for_a_pipe_says_whose_it_is() -> None:
    assert watch_all.lines(Overview(1.0, (FRAME,), (), ()))[0].endswith(" service=qwen3vl")


def test_the_host_is_asked_for_all_its_gpus(host: Host, monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    class Vendor:
        @staticmethod
        def use(host: Host) -> list[GpuUse]:
            return [GPU]

    monkeypatch.setattr(watch_all, "MODULES", {"any": Vendor})
    assert [share.gpu for share in next(overviews(host)).gpus] == [GPU]
    assert host.children(Path("/var/lib")) == []
