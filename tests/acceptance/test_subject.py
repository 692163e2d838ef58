"""Whom the tests ask of a service with replicas: its clients' way, or one of them directly."""

from __future__ import annotations

import dataclasses
import os

import pytest

from installer.acceptance import subject
from installer.acceptance.replies import Failed
from installer.base.errors import Refused, UsageError
from installer.base.host import Host
from installer.base.layout import Layout
from installer.base.report import Report
from installer.flow import prove
from installer.flow.prove import NotProved
from installer.look.formats import KEY_VARIABLE
from installer.spec.records import save_state
from installer.spec.settings import Settings
from installer.spec.state import State
from installer.spec.target import Replica
from installer.units.custody import Custody
from installer.units.graph import Member, members
from installer.units.holding import Holding
from installer.units.render import unit
from tests.kit.targets import PROBE_KEY, target

LAYOUT = Layout("qwen3vl")
MADE = dataclasses.replace(target(Settings(), kind="cpu"), replicas=(Replica(1, 8101), Replica(2, 8102)))


@pytest.fixture
def does(host: Host, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Two replicas that serve behind their gateway; what their units and it do."""
    for member in members(LAYOUT, MADE):
        host.write(member.path, unit(MADE, LAYOUT, member.number))
    host.write(LAYOUT.unit, "[Service]\nExecStart=/usr/bin/python3 vllm_gateway.py run\n")
    host.write(LAYOUT.probe_key, PROBE_KEY)
    save_state(host, LAYOUT, State(LAYOUT.service, proved=MADE))
    states = dict.fromkeys(("qwen3vl.service", "qwen3vl@1.service", "qwen3vl@2.service"), "active")
    monkeypatch.setattr(subject, "unit_properties", lambda _, name, *__: {"ActiveState": states[name]})
    monkeypatch.setattr(Custody, "stranger", lambda *_: None)
    monkeypatch.setattr(Custody, "objection", lambda *_: "")
    return states


@pytest.mark.parametrize(("user", "hint"), [(65534, "run it as root"), (0, "sudo vllm-install doctor qwen3vl")])
def test_who_has_no_key_is_told_what_helps(
    host: Host, does: dict[str, str], monkeypatch: pytest.MonkeyPatch, user: int, hint: str
) -> None:
    host.remove(LAYOUT.probe_key)
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    with pytest.raises(Refused, match="there is no key to ask qwen3vl with") as caught:
        of(host)
    assert caught.value.hint.startswith(hint)


def of(host: Host, number: int = 0) -> subject.Subject:
    return subject.of_service("qwen3vl", None, host, Report(), 10, number)


@pytest.mark.parametrize(
    ("number", "port", "name"),
    [(0, 8000, "qwen3vl.service"), (1, 8101, "qwen3vl@1.service"), (2, 8102, "qwen3vl@2.service")],
)
def test_who_is_asked_and_whose_port_that_is(
    host: Host, does: dict[str, str], number: int, port: int, name: str
) -> None:
    found = of(host, number)
    assert (found.api.address, found.api.port) == ("127.0.0.1", port)
    assert found.api.custody is not None
    assert found.api.custody.unit == name
    assert found.no_tools == "", "which the gateway's own command line does not say"
    assert found.is_ours is not None
    assert found.is_ours() == f"{name} on port {port}"


def test_a_replica_that_there_is_not(host: Host, does: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="qwen3vl has no replica 3") as caught:
        of(host, 3)
    assert caught.value.hint == "those that there are: 1, 2"
    save_state(host, LAYOUT, State(LAYOUT.service, proved=dataclasses.replace(MADE, replicas=())))
    with pytest.raises(UsageError, match="has no replica 1"):
        of(host, 1)


def test_clients_need_one_that_serves_and_who_asks_one_needs_that(host: Host, does: dict[str, str]) -> None:
    does["qwen3vl@1.service"] = "inactive"
    whole, one = of(host).is_ours, of(host, 1).is_ours
    assert whole is not None
    assert one is not None
    whole()
    with pytest.raises(Failed, match=r"qwen3vl@1\.service does not run \(inactive\)") as caught:
        one()
    assert caught.value.hint == "sudo systemctl start qwen3vl@1"
    does["qwen3vl@2.service"] = "inactive"
    with pytest.raises(Failed, match=r"qwen3vl@1\.service does not run"):
        whole()
    does["qwen3vl.service"] = "inactive"
    with pytest.raises(Failed, match=r"qwen3vl\.service does not run"):
        whole()


def test_where_none_serves_yet_the_first_that_comes_up_is_waited_for(
    host: Host, does: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[str] = []

    def wait(member: Member, host: Host, report: Report) -> None:
        waited.append(member.name)
        if member.number == 1:
            raise NotProved("it did not come up")

    monkeypatch.setattr(prove, "wait_until_ready", wait)
    monkeypatch.setattr(subject, "holding", lambda _, member: Holding(1, 0, 1) if member.number == 2 else None)
    does["qwen3vl@1.service"] = "activating"
    check = of(host).is_ours
    assert check is not None
    check()
    assert waited == ["qwen3vl@1.service", "qwen3vl@2.service"]
    monkeypatch.setattr(subject, "holding", lambda *_: None)
    check()
    assert len(waited) == 2, "one serves now, so nobody waits for the other"
