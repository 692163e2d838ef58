"""What is remembered between two commands: the same after a save and a load, and readable words when it is damaged."""

from __future__ import annotations

import dataclasses
import json
import os
import pwd
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from installer.base.errors import Exit, InstallError
from installer.base.host import Host
from installer.base.layout import Layout
from installer.flow import remove, steps
from installer.spec import keys, record
from installer.spec.record import HISTORY
from installer.spec.records import Damaged, load_state, owned_on, readable_state, readable_states, save_state, services
from installer.spec.settings import Settings
from installer.spec.state import Event, Rekeying, State, event, text_digest
from installer.spec.target import Placed, Target
from installer.weights import inventory
from tests.base.test_files import KINDS, planted
from tests.kit.samples import any_settings
from tests.kit.targets import KEYS, target

LAYOUT = Layout("qwen3vl")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def state(**changed: object) -> State:
    whole = State(
        service="qwen3vl",
        owned={"/etc/a": ("1", "2"), "/etc/b": ("3",)},
        owns_user=True,
        proved=target(),
        pending="deploy",
        pending_engine="0123",
        rekeying=Rekeying("set-apikey default", (KEYS[0].argument,)),
        key_shown=True,
        history=(event("deploy", "proved"), Event("2026-01-02T03:04:05Z", "ana", "set-context", "undone: too large")),
    )
    return dataclasses.replace(whole, **changed)  # type: ignore[arg-type]


def test_what_is_not_finished_is_a_change_or_else_one_of_keys() -> None:
    assert state().unfinished == "deploy"
    assert state(pending=None).unfinished == "set-apikey default"
    assert state(pending=None, rekeying=None).unfinished is None


def test_an_engine_is_needed_that_runs_or_could_or_is_worked_towards() -> None:
    before = dataclasses.replace(target(), engine=dataclasses.replace(target().engine, id="before"))
    assert state(previous=before).engines == {target().engine.id, "before", "0123"}
    assert State("qwen3vl").engines == set()


def test_nothing_is_known_of_a_service_never_deployed(host: Host) -> None:
    assert load_state(host, LAYOUT) is None
    assert services(host) == []
    assert owned_on(host) == {}


def test_what_was_saved_is_loaded(host: Host) -> None:
    for whole in (state(), State("qwen3vl"), state(proved=target(kind="cpu", path=Path("/models/a b")))):
        save_state(host, LAYOUT, whole)
        assert load_state(host, LAYOUT) == whole


def test_the_gpus_are_remembered(host: Host) -> None:
    gpus = (Placed("GPU-2", "NVIDIA H200", "/dev/nvidia0"), Placed("GPU-1", "NVIDIA H200", ""))
    whole = state(proved=dataclasses.replace(target(), gpus=gpus))
    save_state(host, LAYOUT, whole)
    assert load_state(host, LAYOUT) == whole


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(any_settings(), st.sampled_from(["cuda", "cpu", "rocm"]))
def test_any_settings_survive(host: Host, chosen: Settings, kind: str) -> None:
    layout = Layout(chosen.service)
    whole = State(chosen.service, proved=target(chosen, kind=kind))
    save_state(host, layout, whole)
    assert load_state(host, layout) == whole


def test_a_key_that_the_unit_holds_verbatim_is_kept_by_its_digest_alone(host: Host) -> None:
    plain = "sk-a-key-that-nobody-else-may-see"
    held = keys.Key("default", keys.digest(plain), plain=plain)
    save_state(host, LAYOUT, state(proved=target(keys=(held, KEYS[1]))))
    assert plain not in (host.read(LAYOUT.state_file) or "")
    loaded = load_state(host, LAYOUT)
    assert loaded is not None
    assert loaded.proved is not None
    assert loaded.proved.keys == (dataclasses.replace(held, plain=None), KEYS[1])


def test_the_history_is_bounded(host: Host) -> None:
    long = tuple(Event("2026-01-02T03:04:05Z", "ana", "deploy", str(n)) for n in range(HISTORY + 5))
    save_state(host, LAYOUT, state(history=long))
    loaded = load_state(host, LAYOUT)
    assert loaded is not None
    assert loaded.history == long[-HISTORY:]


DAMAGED = {
    "empty": "", "cut off": "{", "a list": "[]", "null": "null", "a number": "3", "a text": '"x"', "no version": "{}",
    "no fields": '{"version": 1}', "no text": "\x00\udcff", "other types": '{"version": 1, "owned": []}',
    "nested": "[" * 200_000, "nested objects": '{"a":' * 200_000, "a long number": '{"version": ' + "9" * 9000 + "}",
}  # fmt: skip


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_named_with_a_way_out(host: Host, text: str) -> None:
    host.write(LAYOUT.state_file, text)
    with pytest.raises(Damaged, match=f"{LAYOUT.state_file} cannot be read") as caught:
        load_state(host, LAYOUT)
    assert "mv " in caught.value.hint
    assert caught.value.exit_code == Exit.REFUSED


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_in_the_place_of_the_record_is_named(host: Host, kind: str) -> None:
    planted(kind, host.at(LAYOUT.state_file))
    if kind == "link":
        host.at(LAYOUT.state_file).with_name("secret").write_text(record.to_record(state()))
    with pytest.raises(Damaged, match=f"{LAYOUT.state_file} cannot be read"):
        load_state(host, LAYOUT)
    assert services(host) == ["qwen3vl"]


@pytest.mark.root
def test_a_record_that_another_user_wrote_is_none(host: Host) -> None:
    save_state(host, LAYOUT, state())
    os.chown(host.at(LAYOUT.state_file), 65534, 65534)
    with pytest.raises(Damaged, match="65534"):
        load_state(host, LAYOUT)


def test_one_damaged_record_keeps_nobody_from_what_is_about_others(host: Host) -> None:
    save_state(host, Layout("other"), State("other", owned={"/etc/b": ("4",)}, pending_engine="1"))
    host.write(LAYOUT.state_file, "{")
    assert owned_on(host) == {Path("/etc/b"): {"4"}}
    assert readable_state(host, LAYOUT) is None
    # But what takes away what nobody needs has to know what everybody needs.
    assert readable_states(host, [Layout("other"), LAYOUT]) is None
    engine = LAYOUT.engines / "0123"
    host.make_dir(engine)
    assert list(steps.unused_programs(LAYOUT, [Layout("other"), LAYOUT], host)) == []
    for refused in (remove.plan_prune, inventory.plan_prune):
        with pytest.raises(Damaged):
            refused(host)
    host.remove(LAYOUT.state_dir)
    assert [change.path for change in steps.unused_programs(LAYOUT, [Layout("other")], host)] == [engine]


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("owned", []), ("owned", None), ("history", [{"when": "x"}]), ("history", 3), ("proved", {"settings": {}}),
        ("proved", 7), ("service", ...),
    ],
)  # fmt: skip
def test_a_damaged_part_is_found(host: Host, part: str, value: object) -> None:
    save_state(host, LAYOUT, state())
    data = json.loads(host.read(LAYOUT.state_file) or "")
    if value is ...:
        del data[part]
    else:
        data[part] = value
    host.write(LAYOUT.state_file, json.dumps(data))
    with pytest.raises(InstallError, match="cannot be read"):
        load_state(host, LAYOUT)


NO_LONGER = {
    "vllm_version": ("0.1.0", "0.1.0"), "port": ("70000", 70000), "tensor_parallel_size": ("65", 65),
    "engine": ("tpu", "tpu"), "gpu_memory_utilization": ("1.5", 1.5), "max_model_len": ("much", 1024),
    "offline": ("perhaps", False), "vllm_args": ("it's", ()), "model_sources": (["hub"], ("hub",)),
    "hf_endpoint": ("nowhere", "nowhere"), "of_tomorrow": ("1", ...),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_LONGER)
def test_a_setting_that_could_not_be_chosen_any_more_is_read_as_it_was(host: Host, name: str) -> None:
    text, value = NO_LONGER[name]
    edit(host, lambda data: data["proved"]["settings"].update({name: text}))
    found = proved(host).settings
    assert getattr(found, name, ...) == value
    assert dataclasses.replace(found, **{name: getattr(Settings, name)} if value is not ... else {}) == Settings()


def test_what_this_version_does_not_know_is_passed_over(host: Host) -> None:
    def add(data: dict[str, Any]) -> None:
        proved = data["proved"]
        for part in (data, proved, *(proved[name] for name in ("engine", "model", "profile", "toolkit"))):
            part["of_tomorrow"] = {"any": ["thing"]}
        data["history"][0]["of_tomorrow"] = 1

    edit(host, add)
    assert load_state(host, LAYOUT) == state(history=load_state(host, LAYOUT).history)  # type: ignore[union-attr]


def edit(host: Host, change: Callable[[dict[str, Any]], None]) -> None:
    """Our record, changed by another hand."""
    data = json.loads(record.to_record(state()))
    change(data)
    host.write(LAYOUT.state_file, json.dumps(data))


def proved(host: Host, *, to_look: bool = False) -> Target:
    found = load_state(host, LAYOUT, to_look=to_look)
    assert found is not None
    assert found.proved is not None
    return found.proved


def test_a_record_of_a_newer_version_is_for_looking_alone(host: Host) -> None:
    def make_newer(data: dict[str, Any]) -> None:
        data["version"] = 99
        data["history"] = {"none": "that we know"}
        data["proved"]["toolkit"] = "of another form"
        data["previous"] = {"settings": []}

    edit(host, make_newer)
    with pytest.raises(Damaged, match="written by a newer version"):
        load_state(host, LAYOUT)
    assert readable_states(host, [LAYOUT]) is None
    found = load_state(host, LAYOUT, to_look=True)
    assert found == readable_state(host, LAYOUT)
    expected = state(previous=None, history=())
    assert found == dataclasses.replace(expected, proved=dataclasses.replace(target(), toolkit=None))


@pytest.mark.parametrize("owned", [..., [], {"/etc/a": "digest"}])
def test_where_nobody_knows_what_is_ours_a_newer_record_is_damaged(host: Host, owned: object) -> None:
    def make_newer(data: dict[str, Any]) -> None:
        data["version"], data["owned"] = 99, owned
        if owned is ...:
            del data["owned"]

    edit(host, make_newer)
    with pytest.raises(Damaged, match="cannot be read"):
        load_state(host, LAYOUT, to_look=True)


def test_an_older_record_goes_through_every_version_up_to_ours(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def age(data: dict[str, Any]) -> None:
        data["version"] = -1
        data["name"] = data.pop("service")

    steps = {
        -1: lambda data: {**data, "called": data["name"]},
        0: lambda data: {**data, "service": data["called"]},
        1: lambda data: data,
        2: lambda data: data,
        3: lambda data: data,
        4: lambda data: data,
        5: lambda data: data,
        6: lambda data: data,
    }
    edit(host, age)
    with pytest.raises(Damaged):
        load_state(host, LAYOUT)
    monkeypatch.setattr(record, "MIGRATIONS", steps)
    assert load_state(host, LAYOUT) == state(history=load_state(host, LAYOUT).history)  # type: ignore[union-attr]


def test_what_is_ours_is_gathered_over_all_services(host: Host) -> None:
    save_state(host, LAYOUT, state())
    save_state(host, Layout("other"), State("other", owned={"/etc/b": ("4",), "/etc/c": ("5",)}))
    host.make_dir(Path("/var/lib/vllm-install/not-a-service"))
    assert services(host) == ["other", "qwen3vl"]
    assert owned_on(host) == {Path("/etc/a"): {"1", "2"}, Path("/etc/b"): {"3", "4"}, Path("/etc/c"): {"5"}}


def test_digests_are_of_bytes() -> None:
    assert text_digest("\udce9") != text_digest("é")
    assert len(text_digest("")) == 64


@pytest.mark.parametrize(
    ("environment", "who"),
    [
        ({"SUDO_USER": "ana"}, "ana"),
        ({"DOAS_USER": "ben"}, "ben"),
        ({}, pwd.getpwuid(os.getuid()).pw_name),
        ({"SUDO_USER": "a\nb"}, pwd.getpwuid(os.getuid()).pw_name),
    ],
)
def test_an_event_names_who_it_was(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], who: str) -> None:
    for name in ("SUDO_USER", "DOAS_USER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert event("deploy", "proved").who == who
