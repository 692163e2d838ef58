"""Somebody else listens in the service's place and answers as its guard would: whoever has a key of it keeps it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from installer.acceptance import subject
from installer.base.host import Host
from installer.base.layout import Layout
from installer.base.report import Report
from installer.diagnosis.scene import look
from installer.flow import prove, soak_rules
from installer.flow.wanted import Wanted
from installer.look import status
from installer.look.client import client_of
from installer.spec.records import save_state
from installer.spec.settings import Settings
from installer.spec.state import State
from installer.units.api import NoAnswer
from installer.units.graph import handle
from installer.units.render import unit
from tests.kit.targets import DEFAULT_KEY, PROBE_KEY, wanted
from tests.runtime.test_launcher import Stranger, serving
from tests.units.test_custody import HEADER, USERS, row

LAYOUT = Layout("qwen3vl")
ASKERS: dict[str, Callable[[Wanted, Host], object]] = {
    "the proof": lambda want, host: prove.Server(want, handle(LAYOUT, want.target), host).ask("GET", "/", PROBE_KEY),
    "a new key": lambda want, host: prove.keys_in_force(want, host, DEFAULT_KEY),
    "status and doctor": lambda want, host: look("qwen3vl", host).api().ask("GET", "/metrics"),
    "a soak": lambda want, host: soak_rules.answered(host, LAYOUT, want.target),
    "test": lambda want, host: subject.of_service("qwen3vl", DEFAULT_KEY, host, Report(), 10).api.ask("GET", "/"),
}


@pytest.fixture
def want(host: Host) -> Iterator[Wanted]:
    """A service on whose port a process of somebody else's answers, as the kernel's table says."""
    Stranger.told.clear()
    with serving(0) as server:
        want = wanted(Settings(host="127.0.0.1", port=server.server_port), kind="cpu")
        host.write(Path("/etc/passwd"), USERS)
        host.write(Path("/proc/net/tcp"), HEADER + row("127.0.0.1", 7, 1000, port=server.server_port))
        host.write(LAYOUT.unit, unit(want.target, LAYOUT))
        host.write(LAYOUT.probe_key, PROBE_KEY)
        save_state(host, LAYOUT, State("qwen3vl", proved=want.target))
        yield want


@pytest.mark.parametrize("asks", ASKERS.values(), ids=list(ASKERS))
def test_no_key_is_sent_there(want: Wanted, host: Host, asks: Callable[[Wanted, Host], object]) -> None:
    with suppress(NoAnswer, prove.Silent):
        assert asks(want, host) is None
    assert set(Stranger.told) <= {""}


def test_who_is_shown_it_is_told_so(want: Wanted, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not status._listens(look("qwen3vl", host))
    warned: list[str] = []
    report = Report()
    monkeypatch.setattr(report, "warn", warned.append)
    client_of("qwen3vl", host, report)
    assert [text.partition(":")[0] for text in warned] == ["send no key there now"]
