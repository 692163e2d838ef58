"""Limits on a host: who has them, what goes with a key, and what a service reads."""

from __future__ import annotations

import dataclasses

import pytest

from installer.base.errors import Refused, UsageError
from installer.base.host import Host
from installer.base.layout import USAGE, Layout
from installer.base.report import Report
from installer.flow import limit, steps
from installer.runtime.vllm_limits import Limit
from installer.spec.keys import Key, digest
from installer.spec.records import save_state
from installer.spec.settings import Settings
from installer.spec.state import State
from installer.units.render import render, with_keys
from tests.kit.targets import KEYS, wanted

LAYOUT = Layout("qwen3vl")
TEAM = Key("team-a", digest("sk-team-a-0123456789"))


class Said(Report):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture
def service(host: Host) -> Host:
    want = wanted()
    host.write(LAYOUT.unit, with_keys(render(want.target, LAYOUT)[LAYOUT.unit].text, (*KEYS, TEAM)))
    save_state(host, LAYOUT, State("qwen3vl", proved=want.target))
    return host


def change(host: Host, name: str = "team-a", **given: str) -> tuple[Limit, list[str]]:
    said = Said()
    return limit.change("qwen3vl", name, given or None, host, said), said.warnings


def test_a_limit_is_written_where_the_service_reads_it(service: Host) -> None:
    assert change(service, concurrent="8", tokens="100k/min") == (Limit(8, tokens=100_000), [])
    assert (service.read(LAYOUT.limits_file) or "").endswith("\nteam-a concurrent=8 tokens=100000\n")
    assert service.mode(LAYOUT.limits_file) == 0o644
    assert f"Environment=LIMITS={LAYOUT.limits_file}\n" in (service.read(LAYOUT.unit) or "")
    change(service, "default", requests="9/min")
    assert limit.of_service(service, LAYOUT) == {"team-a": Limit(8, tokens=100_000), "default": Limit(requests=9)}


def test_the_file_goes_with_the_last_limit(service: Host) -> None:
    change(service, concurrent="8")
    assert change(service)[0] == Limit()
    assert not service.exists(LAYOUT.limits_file)


@pytest.mark.parametrize("name", ["nobody", "probe", "team-a-old"])
def test_only_a_key_that_there_is_can_be_limited_and_the_watcher_s_is_not(service: Host, name: str) -> None:
    with pytest.raises(UsageError) as caught:
        change(service, name, concurrent="8")
    assert caught.value.hint == ("" if name == "probe" else "keys: default, team-a")
    assert not service.exists(LAYOUT.limits_file)


def test_a_service_that_is_not_ours_has_no_limits(host: Host) -> None:
    with pytest.raises(Refused):
        change(host, concurrent="8")


def test_with_a_key_that_is_gone_goes_its_limit(service: Host) -> None:
    change(service, concurrent="8")
    change(service, "default", requests="9/min")
    limit.forget("team-a", service, LAYOUT, Report())
    assert set(limit.of_service(service, LAYOUT)) == {"team-a", "default"}, "it is there still"
    service.write(LAYOUT.unit, with_keys(service.read(LAYOUT.unit) or "", KEYS))
    limit.forget("team-a", service, LAYOUT, Report())
    assert set(limit.of_service(service, LAYOUT)) == {"default"}


def test_a_limit_stays_while_the_old_key_lives_beside_its_successor(service: Host) -> None:
    change(service, concurrent="8")
    old = dataclasses.replace(TEAM, name="team-a-old", expiry="2999-01-01T00:00:00Z")
    service.write(LAYOUT.unit, with_keys(service.read(LAYOUT.unit) or "", (*KEYS, old)))
    change(service, "default", requests="9/min")
    assert set(limit.of_service(service, LAYOUT)) == {"team-a", "default"}


def test_what_was_written_by_hand_and_is_none_goes(service: Host) -> None:
    service.write(LAYOUT.limits_file, "team-a requests=lots\nstranger requests=3\ndefault tokens=5\n")
    change(service, concurrent="8")
    assert limit.of_service(service, LAYOUT) == {"team-a": Limit(8), "default": Limit(tokens=5)}


def test_it_is_said_where_a_limit_has_no_effect(service: Host) -> None:
    (told,) = change(service, priority="high")[1]
    assert "SCHEDULING=priority" in told
    by_priority = wanted(dataclasses.replace(Settings(), scheduling="priority")).target
    save_state(service, LAYOUT, State("qwen3vl", proved=by_priority))
    assert change(service, priority="high")[1] == []
    service.write(LAYOUT.unit, (service.read(LAYOUT.unit) or "").replace("LIMITS=", "L="))
    (told,) = change(service, priority="normal", concurrent="8")[1]
    assert "deploy" in told


def test_an_uninstall_takes_limits_and_usage_away(service: Host) -> None:
    change(service, concurrent="8")
    service.write(LAYOUT.usage_file, "x")
    removed = [each.path for each in steps.removal(LAYOUT, State("qwen3vl"), service, weights=False, engine=False)
               if isinstance(each, steps.Remove)]  # fmt: skip
    assert {LAYOUT.limits_file, LAYOUT.usage_dir, USAGE} <= set(removed)


def test_the_settings_reach_the_service() -> None:
    plain = render(wanted().target, LAYOUT)[LAYOUT.unit].text
    assert "MAX_QUEUED" not in plain
    assert "--scheduling-policy" not in plain
    target = wanted(dataclasses.replace(Settings(), max_queued=9, ttft="2s", scheduling="priority")).target
    text = render(target, LAYOUT)[LAYOUT.unit].text
    assert f"Environment=LIMITS={LAYOUT.limits_file} MAX_QUEUED=9 TTFT=2s\n" in text
    assert "--scheduling-policy priority" in text
