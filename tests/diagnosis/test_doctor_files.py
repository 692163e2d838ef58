"""What stands in a service's files, as doctor and status tell it: keys that end, changes under way, bad drop-ins."""

from __future__ import annotations

import dataclasses
import os
import re
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from installer.diagnosis import doctor
from installer.diagnosis.scene import Scene, look
from installer.look.screen import lines
from installer.look.status import status
from installer.spec import keys
from installer.spec.keys import Key
from installer.spec.records import managed, save_state
from installer.spec.state import Event
from installer.units.render import with_keys
from tests.diagnosis import test_doctor
from tests.diagnosis.test_doctor import LAYOUT, SERVICE, Tree
from tests.kit.targets import KEYS

tree = test_doctor.tree


def holds(tree: Tree, *more: Key) -> None:
    """The unit has these keys beside its usual ones."""
    tree.write(LAYOUT.unit, with_keys(tree.host.read(LAYOUT.unit) or "", (*KEYS, *more)))


def test_of_a_key_that_ends_the_remedy_lets_it_work_until_then(tree: Tree) -> None:
    """Of one that was kept beside its successor nothing is said: it is meant to end."""
    soon = keys.stamp(datetime.now(timezone.utc) + timedelta(days=3))
    holds(tree, Key("boss-old", keys.digest("b"), expiry=soon), Key("guest", keys.digest("g"), expiry=soon))
    (finding,) = (each for each in tree.findings() if each.id == "key-expires")
    (command,) = finding.commands
    kept = re.fullmatch(rf"sudo vllm-install set-apikey --service {SERVICE} --name guest --keep-old (\d+)d", command)
    assert kept
    assert int(kept[1]) >= 3


@pytest.mark.parametrize(
    ("expiry", "said"), [("2026-01-01T00:00:00Z", "expired at"), ("2999-01-01T00:00:00Z", "until")]
)
def test_a_key_that_has_ended_is_marked(tree: Tree, expiry: str, said: str) -> None:
    holds(tree, Key("boss-old", keys.digest("b"), expiry=expiry))
    shown = dict(lines(status(SERVICE, tree.host)))["keys"]
    assert f"boss-old ({keys.digest('b')[:8]}…) {said} {expiry}" in shown


def test_a_change_that_is_under_way_is_no_fault_and_one_that_was_cut_off_is_said(tree: Tree) -> None:
    save_state(tree.host, LAYOUT, dataclasses.replace(managed(tree.host, LAYOUT), pending="set PORT=8001"))
    assert dict(lines(status(SERVICE, tree.host)))["unfinished"] == "set PORT=8001 was cut off; run it again"
    assert "change-cut-off" in tree.ids()
    with tree.host.lock(LAYOUT.change_lock, "vllm-install set"):
        shown = status(SERVICE, tree.host)
        found = {finding.id: finding.severity for finding in tree.findings()}
    assert (shown.pending, shown.problem) == (None, None)
    assert re.fullmatch(rf"vllm-install set \(pid {os.getpid()}\), \d+ s", dict(lines(shown))["under way"])
    assert "change-under-way" in found
    assert "change-cut-off" not in found
    assert set(found.values()) == {"note"}


@pytest.mark.parametrize(
    ("outcome", "days", "is_said"),
    [("undone: it did not come up", 0, True), ("rolled back: it hung", 0, True), ("undone: cut off", 2, False),
     ("proved", 0, False)],
)  # fmt: skip
def test_a_change_that_was_taken_back_is_said_for_a_day(tree: Tree, outcome: str, days: int, is_said: bool) -> None:
    when = keys.stamp(datetime.now(timezone.utc) - timedelta(days=days))
    last = Event(when, "root", "set PORT=8001\x1b[2J", outcome)
    save_state(tree.host, LAYOUT, dataclasses.replace(managed(tree.host, LAYOUT), history=(last,)))
    found = [finding for finding in tree.findings() if finding.id == "change-undone"]
    assert [finding.severity for finding in found] == ["note"] * is_said
    assert not any("\x1b" in finding.cause for finding in found)


# Units that systemd does not take


def test_a_masked_unit_is_unmasked(tree: Tree) -> None:
    tree.host.at(LAYOUT.unit).unlink()
    tree.link(LAYOUT.unit, Path("/dev/null"))
    (finding,) = (each for each in tree.findings() if each.id.startswith("unit-"))
    assert (finding.id, finding.commands[0].partition(" && ")[0]) == ("unit-masked", "sudo systemctl unmask qwen3vl")


class Loaded(Scene):
    """A service of whose unit systemd says this."""

    unit: dict[str, str] = {}  # type: ignore[assignment]  # noqa: RUF012


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("MemoryDenyWriteExecute=yes", "dropin-breaks"),
        ("ExecStart=/bin/true", "dropin-flags"),
        ("Restart=never", "dropin-breaks"),
    ],
)
def test_a_drop_in_with_which_systemd_loads_nothing_is_named_first(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, line: str, found: str
) -> None:
    path = LAYOUT.unit.parent / "qwen3vl.service.d/override.conf"
    tree.write(path, f"[Service]\n{line}\n")
    monkeypatch.setattr(
        Loaded, "unit", {"LoadState": "bad-setting", "LoadError": "it is bad", "DropInPaths": str(path)}
    )
    of_units = ("dropin-", "unit-")
    told = doctor.diagnose(Loaded(tree.host, LAYOUT, look(SERVICE, tree.host).state, None)).findings
    first = next(each for each in told if each.id.startswith(of_units))
    assert (first.id, first.severity) == (found, "fault")
    assert "unit-invalid" not in {each.id for each in told}
