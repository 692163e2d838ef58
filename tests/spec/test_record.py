"""The form of a record: what every tool before this one wrote is read, and today's is written as it was."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from installer.spec.calibration import Calibration
from installer.spec.former import Former
from installer.spec.model import Model
from installer.spec.profile import Profile
from installer.spec.record import of_record, to_record
from installer.spec.settings import Settings
from installer.spec.soak import Requests, Soak
from installer.spec.state import Event, Rekeying, State
from installer.spec.target import Adapter, Place, Placed, Replica, Target
from installer.spec.toolkit import Toolkit
from tests.kit.boot.surroundings import REPO
from tests.kit.targets import KEYS, QWEN3_VL, target

STATES = REPO / "tests/fixtures/states"


COMMIT = "0123456789abcdef0123456789abcdef01234567"
SQL = Model(
    "sql", Path(f"/var/cache/vllm-install/hub/models--Org--Sql/snapshots/{COMMIT}"), COMMIT, "hub", repo="Org/Sql"
)


def written() -> State:
    """What was given to the tools that wrote the fixtures, as far as each of them knew what it is."""
    settings = Settings(
        model="Qwen/Qwen3-VL-8B-Instruct", max_model_len=None, gpu_memory_utilization=0.5, vllm_version="0.32.0",
        offline=True, index_url="https://pypi.example/simple", vllm_args=("--max-num-seqs", "8"),
    )  # fmt: skip
    known: dict[str, Any] = {"profile": QWEN3_VL, "toolkit": Toolkit("none", "/nonexistent")}
    before = dataclasses.replace(target(settings), **known)
    before = dataclasses.replace(before, engine=dataclasses.replace(before.engine, image=f"sha256:{'0' * 64}"))
    gpus = (Placed("GPU-2", "NVIDIA H200", "/dev/nvidia0"),)
    on_a_gpu: dict[str, Any] = {"gpus": gpus, "replicas": (Replica(1, 20001, gpus), Replica(2, 20002)),
                                "adapters": (Adapter(SQL, 16),)}  # fmt: skip
    return State(
        service="qwen3vl",
        owned={"/etc/a": ("1", "2"), "/etc/b": ("3",)},
        owns_user=True,
        proved=dataclasses.replace(
            before, settings=dataclasses.replace(settings, port=8001, lora=(f"sql={SQL.repo}",)), **on_a_gpu
        ),
        previous=before,
        calibration=Calibration(4294967296, 57344, 1024),
        pending="deploy",
        pending_model="/models/a",
        pending_engine="0123",
        rekeying=Rekeying("set-apikey default", (KEYS[0].argument,)),
        key_shown=True,
        former=Former("old-llm.service", True, False, ((Path("/etc/systemd/system/qwen3vl.service"), 0o640),)),
        soak=Soak(
            "set-context 4k", 1800, "2026-01-02T03:04:05Z", "0f9c2d5e", 1234.5, 600.25, "4d1", 4711,
            Requests(1000, 10), Requests(70, 1), (), Requests(90, 2), "6.1.0", "NVRM version: 580.1",
            ("the kernel changed from 6.0.9 to 6.1.0",), "it hung", 1,
        ),
        history=(Event("2026-01-02T03:04:05Z", "ana", "set-context 2k", "undone: too large"),),
    )  # fmt: skip


def less(state: State, **of_targets: Any) -> State:
    def known(target: Target | None) -> Target | None:
        return target and dataclasses.replace(target, **of_targets)

    return dataclasses.replace(state, proved=known(state.proved), previous=known(state.previous))


def without_adapters(state: State) -> State:
    assert state.proved
    settings = dataclasses.replace(state.proved.settings, lora=())
    return dataclasses.replace(state, proved=dataclasses.replace(state.proved, settings=settings, adapters=()))


def less_of_engine(state: State, **of_engines: Any) -> State:
    assert state.proved
    assert state.previous
    targets = (state.proved, state.previous)
    proved, previous = (
        dataclasses.replace(target, engine=dataclasses.replace(target.engine, **of_engines)) for target in targets
    )
    return dataclasses.replace(state, proved=proved, previous=previous)


def in_a_group(state: State) -> State:
    assert state.proved
    settings = dataclasses.replace(
        state.proved.settings, group_hosts=("10.0.0.1", "10.0.0.2"), group_key_file="/etc/vllm-install/group.key"
    )
    proved = dataclasses.replace(state.proved, settings=settings, place=Place(1, "enp5s0"))
    return dataclasses.replace(state, proved=proved)


def before_several_hosts(state: State) -> State:
    assert state.proved
    settings = dataclasses.replace(state.proved.settings, gateway_hosts=("10.0.0.1", "10.0.0.2"))
    return dataclasses.replace(state, proved=dataclasses.replace(state.proved, settings=settings, others=("10.0.0.2",)))


PACKAGES = less_of_engine(written(), image="")
SERVING = without_adapters(PACKAGES)
SINGLE = less(SERVING, replicas=())
BEFORE = dataclasses.replace(SINGLE, soak=None)
UNKNOWN: dict[str, Any] = {"pending_model": None, "pending_engine": None, "rekeying": None, "former": None}
FORMS = {
    "before-profiles": dataclasses.replace(less(BEFORE, toolkit=None, gpus=(), profile=Profile()), **UNKNOWN),
    "before-gpus": less(BEFORE, toolkit=None, gpus=()),
    "before-toolkits": less(BEFORE, toolkit=None),
    "before-hold": BEFORE,
    "0.1.0": SINGLE,
    "replicas": SERVING,
    "families": SERVING,
    "adapters": dataclasses.replace(PACKAGES, owns_sysusers=True),
    "forms": dataclasses.replace(written(), owns_sysusers=True),
    "groups": in_a_group(dataclasses.replace(written(), owns_sysusers=True)),
    "gateways": before_several_hosts(dataclasses.replace(written(), owns_sysusers=True)),
}


def test_each_fixture_is_looked_at() -> None:
    assert {path.stem for path in STATES.glob("*.json")} == {*FORMS, "0.1.0-deployed"}


@pytest.mark.parametrize("form", FORMS)
def test_what_an_earlier_tool_wrote_is_read(form: str) -> None:
    version = {"replicas": 2, "families": 3, "adapters": 4, "forms": 5, "groups": 6, "gateways": 7}.get(form, 1)
    assert of_record((STATES / f"{form}.json").read_text(), "qwen3vl") == (version, FORMS[form])


def test_the_form_of_today_is_written_as_it_was() -> None:
    text = (STATES / "gateways.json").read_text()
    written = json.loads(to_record(of_record(text, "qwen3vl")[1]))
    assert written == json.loads(text), "a new setting stands in gateways.json as well, under proved and previous"


def test_a_record_of_a_whole_life_is_read() -> None:
    _, state = of_record((STATES / "0.1.0-deployed.json").read_text(), "qwen3vl")
    assert state.proved
    assert state.previous
    versions = [each.engine.vllm_version for each in (state.proved, state.previous)]
    assert (versions, state.proved.settings.max_model_len) == (["0.32.0", "0.31.0"], 2048)
    assert [key.name for key in state.proved.keys] == ["default", "default-old", "team", "probe"]
    assert (state.proved.toolkit, state.proved.gpus, state.former) == (None, (), None)
    assert [event.what for event in state.history][-2:] == ["upgrade", "set LISTEN_HOST=192.0.2.1"]
    assert state.calibration == Calibration(4294967296, 57344, 2048, 10737418, 10737418)
