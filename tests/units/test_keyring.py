"""Keys that are changed while something else is under way: what was revoked stays away, what was set stays."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from installer.base.host import Host
from installer.base.layout import Layout
from installer.base.report import Report
from installer.flow import steps
from installer.spec import keys
from installer.spec.keys import Key
from installer.spec.records import load_state, save_state
from installer.spec.state import State, event
from installer.spec.target import Replica
from installer.units import keyring
from installer.units.graph import members
from installer.units.keyring import merged
from installer.units.render import render, unit, with_keys
from tests.base.test_files import KINDS, planted
from tests.kit.targets import KEYS, wanted

LAYOUT = Layout("qwen3vl")
NAMES = ("default", "guest", "metrics-board")
PROBE = KEYS[1]


def key(name: str, text: str = "") -> Key:
    return Key(name, keys.digest(text or name))


@st.composite
def held(draw: st.DrawFn) -> tuple[Key, ...]:
    """The keys of a unit: with a default one, whose text is one of a few."""
    names = {"default", *draw(st.sets(st.sampled_from(NAMES)))}
    return keys.in_order([PROBE, *(key(name, draw(st.sampled_from("abc")) + name) for name in names)])


@given(held(), held(), held())
def test_no_key_comes_back_and_none_that_was_set_is_lost(
    ours: tuple[Key, ...], before: tuple[Key, ...], now: tuple[Key, ...]
) -> None:
    found = merged(ours, before, now)
    gone = {key.digest for key in before} - {key.digest for key in now}
    assert not gone & {key.digest for key in found}
    assert set(now) - set(before) <= set(found)
    assert keys.may_ask(found)
    assert PROBE in found
    assert len({key.name for key in found}) == len(found)


def test_who_holds_the_keys_is_named_by_its_verb(host: Host) -> None:
    with keyring.alone(host, LAYOUT, Report(), "uninstall"):
        holder = host.lock_holder(LAYOUT.keys_lock)
    assert holder is not None
    assert holder.command.startswith("vllm-install uninstall --service qwen3vl (pid ")


@given(held(), held())
def test_where_nobody_changed_a_key_ours_are_written(ours: tuple[Key, ...], before: tuple[Key, ...]) -> None:
    assert merged(ours, before, before) == ours


def test_a_key_revoked_by_its_name_goes_in_every_generation() -> None:
    given_anew = (key("default"), key("guest", "new"))
    assert merged(given_anew, (key("default"), key("guest", "old")), (key("default"),)) == (key("default"),)


def test_the_last_key_that_may_ask_is_not_lost() -> None:
    now = (key("default", "new"),)
    assert merged((key("guest"),), (key("guest"),), now) == now


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_a_unit_is_written_with_the_keys_of_that_moment(host: Host) -> None:
    want = wanted()
    text = render(want.target, LAYOUT)[LAYOUT.unit].text
    guest, leaked = key("guest"), key("leaked")
    host.write(LAYOUT.unit, with_keys(text, (*KEYS, leaked)))
    planned = with_keys(text, (*KEYS, leaked)).replace("[Service]\n", "[Service]\nNice=7\n")
    change = keyring.WriteUnit(LAYOUT.unit, planned, layout=LAYOUT, held=keyring.held_in_unit(host, LAYOUT))
    host.write(LAYOUT.unit, with_keys(text, (*KEYS, guest)))  # one was revoked and one set meanwhile
    change.apply(host, Report())
    assert set(keyring.unit_keys(host, LAYOUT)) == {*KEYS, guest}
    assert "Nice=7" in (host.read(LAYOUT.unit) or "")


def test_a_key_that_somebody_wrote_with_an_equals_sign_is_one(host: Host) -> None:
    text = render(wanted().target, LAYOUT)[LAYOUT.unit].text
    host.write(LAYOUT.unit, text.replace("--api-key ", "--api-key="))
    assert set(keyring.unit_keys(host, LAYOUT)) == set(KEYS)
    assert with_keys(host.read(LAYOUT.unit) or "", KEYS) == text


def test_a_key_that_goes_while_a_change_is_still_being_planned_stays_away(host: Host) -> None:
    """A plan takes seconds: an index is asked, a hub, an interpreter."""
    leaked = key("leaked")
    begun = wanted(keys=(*KEYS, leaked))
    text = render(begun.target, LAYOUT)[LAYOUT.unit].text
    host.write(LAYOUT.unit, text.replace("[Service]\n", "[Service]\nNice=7\n"))
    begun = dataclasses.replace(begun, held=keyring.held_in_unit(host, LAYOUT))
    host.write(LAYOUT.unit, with_keys(host.read(LAYOUT.unit) or "", KEYS))
    (change,) = (change for change in steps.unit_files(begun, host) if isinstance(change, keyring.WriteUnit))
    change.apply(host, Report())
    assert set(keyring.unit_keys(host, LAYOUT)) == set(KEYS)
    assert "Nice=7" not in (host.read(LAYOUT.unit) or "")


def test_the_unit_of_a_replica_is_written_with_the_keys_that_the_first_has_then(host: Host) -> None:
    """Also one that was edited or is not there yet; what the change itself brought is not taken for revoked."""
    guest, leaked = key("guest"), key("leaked")
    made = dataclasses.replace(wanted().target, replicas=(Replica(1, 8101), Replica(2, 8102), Replica(3, 8103)))
    paths = [member.path for member in members(LAYOUT, made)]
    for number, path in enumerate(paths[:2], 1):
        host.write(path, with_keys(unit(made, LAYOUT, number), (*KEYS, leaked)))
    host.write(paths[1], with_keys(host.read(paths[1]) or "", (leaked,)))
    before = keyring.held_in_unit(host, LAYOUT)
    for path in paths[:2]:
        host.write(path, with_keys(host.read(path) or "", (*KEYS, guest)))  # one was revoked and one set meanwhile
    new = key("new")
    for number, path in enumerate(paths, 1):
        planned = with_keys(unit(made, LAYOUT, number), (*KEYS, leaked, new))
        keyring.WriteUnit(path, planned, layout=LAYOUT, held=before).apply(host, Report())
        assert set(keyring.keys_in(host.read(path) or "")) == {*KEYS, guest, new}


def test_the_record_is_changed_as_it_is_now(host: Host) -> None:
    """What somebody else remembered meanwhile is not overwritten by what was read before."""
    save_state(host, LAYOUT, State("qwen3vl"))
    known = load_state(host, LAYOUT)
    assert known is not None
    save_state(host, LAYOUT, dataclasses.replace(known, history=(event("keys revoke guest", "proved"),)))
    keyring.update(known, lambda now: dataclasses.replace(now, pending="set"), host, LAYOUT, Report())
    found = load_state(host, LAYOUT)
    assert found is not None
    assert (found.pending, [entry.what for entry in found.history]) == ("set", ["keys revoke guest"])


# The keys in force, in a directory of the service's


@pytest.mark.parametrize("kind", KINDS)
def test_a_trap_in_the_place_of_the_keys_in_force_is_no_key(host: Host, kind: str) -> None:
    planted(kind, host.at(LAYOUT.run_dir / "keys"))
    if kind == "link":
        host.at(LAYOUT.run_dir / "secret").write_text("default inference 0123 -\n")
    assert keyring.live_keys(host, LAYOUT.run_dir) == frozenset()


def test_the_keys_in_force_are_those_in_the_service_s_file(host: Host) -> None:
    host.write(LAYOUT.run_dir / "keys", "probe inference 01 -\ndefault admin 23 2030-01-01T00:00:00Z\ncut off\n")
    assert keyring.live_keys(host, LAYOUT.run_dir) == {("probe", "01"), ("default", "23")}


def test_nobody_changes_the_keys_while_they_are_handed_over(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    change, holders = keyring.TakeKeys(LAYOUT), list[object]()
    monkeypatch.setattr(Host, "systemctl", lambda host, *_: holders.append(host.lock_holder(LAYOUT.keys_lock)))
    for path, file in render(wanted().target, LAYOUT).items():
        host.write(path, file.text)
    host.make_dir(LAYOUT.run_dir)
    change.apply(host, Report())
    assert (len(holders), None in holders) == (1, False)
    assert len((host.read(LAYOUT.run_dir / "keys") or "").splitlines()) == len(KEYS)
    assert change.to_json() == {"kind": "keys", "unit": "qwen3vl.service"}
