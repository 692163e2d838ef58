"""What is refused between the settings and the plan."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from installer.base.errors import Refused, UsageError
from installer.base.host import Host
from installer.base.layout import Layout
from installer.flow.request import KeyChoice, Request
from installer.flow.resolve import _check_form, _check_senses, _known_profile, _without
from installer.spec.facts import Process
from installer.spec.model import Model, ModelFile
from installer.spec.settings import Settings
from installer.spec.state import State
from tests.checks.test_preflight import CUDA, H200
from tests.kit.targets import target

LAYOUT = Layout("qwen3vl")
SEEING = Model("org/seeing", Path("/hub/seeing"), "c" * 40, "hub", (ModelFile("preprocessor_config.json", 1, "d"),))
READING = Model("org/reading", Path("/hub/reading"), "c" * 40, "hub", (ModelFile("config.json", 1, "d"),))


def test_a_model_that_sees_is_refused_on_the_cpu_engine_before_its_weights_are_fetched(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="org/seeing takes images"):
        _check_senses(SEEING, "cpu", Host(tmp_path))
    _check_senses(SEEING, "cuda", Host(tmp_path))
    _check_senses(READING, "cpu", Host(tmp_path))


def test_a_model_that_sees_is_recognised_on_disk_as_well(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.write(READING.path / "preprocessor_config.json", "{}")
    with pytest.raises(Refused):
        _check_senses(READING, "cpu", host)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"replicas": 2}, "what needs the gateway (REPLICAS)"),
        ({"tls": "self"}, "what needs the gateway (TLS)"),
        ({"tls_cert": "/c", "tls_key": "/k"}, "what needs the gateway (TLS_CERT)"),
        ({"fallback_url": "https://x/v1"}, "what needs the gateway (FALLBACK_URL)"),
        ({"gateway_hosts": ("10.0.0.1", "10.0.0.2")}, "what needs the gateway (GATEWAY_HOSTS)"),
        ({"replicas": 2, "tls": "self"}, "what needs the gateway (REPLICAS, TLS)"),
        ({"group_hosts": ("10.0.0.1", "10.0.0.2")}, "other hosts beside this one (GROUP_HOSTS)"),
        ({"replicas": 2, "engine_family": "sglang"}, "what needs the gateway (REPLICAS); SGLang (ENGINE_FAMILY)"),
        ({"engine": "rocm"}, "GPUs of AMD (ENGINE=rocm)"),
        ({"cuda_toolkit": "host"}, "a compiler chosen by CUDA_TOOLKIT"),
    ],
)
def test_what_a_container_cannot_do_is_said_before_anything_is_looked_at(asked: dict[str, Any], named: str) -> None:
    asking = Request("deploy", Settings(runtime="podman", **asked))
    with pytest.raises(UsageError) as caught:
        _check_form(asking, asking.settings, throwaway=False)
    assert caught.value.message == f"RUNTIME=podman cannot have {named}"
    assert caught.value.hint == "leave that out, or choose RUNTIME=venv"
    _check_form(Request("deploy", Settings(**asked)), Settings(**asked), throwaway=False)


def test_a_container_is_for_a_service_without_a_key_in_clear() -> None:
    settings = Settings(runtime="podman")
    with pytest.raises(UsageError, match="a key in clear in the unit"):
        _check_form(Request("deploy", settings, KeyChoice(plain=True)), settings, throwaway=False)
    with pytest.raises(UsageError, match="a throwaway server"):
        _check_form(Request("test", settings), settings, throwaway=True)
    _check_form(Request("deploy", settings), settings, throwaway=False)


def test_what_an_old_unit_held_is_the_service_s_when_it_has_made_way_and_nothing_else() -> None:
    old, other = Process(7, "vllm", "old.service"), Process(8, "nginx", "other.service")
    facts = dataclasses.replace(CUDA, gpus=(dataclasses.replace(H200, holders=(old, other)),), port_holder=other)
    seen = _without("old.service", facts, LAYOUT)
    assert [holder.unit for holder in seen.gpus[0].holders] == ["qwen3vl.service", "other.service"]
    assert (seen.port_holder, seen.service_runs) == (other, True)
    assert _without("old.service", dataclasses.replace(facts, port_holder=old), LAYOUT).port_holder is None


def test_a_profile_that_was_proved_stays_for_the_same_model_in_the_same_words_on_the_same_kind_of_engine() -> None:
    proved = target()
    settings, model, state = proved.settings, proved.model, State("qwen3vl", proved=proved)
    assert _known_profile(settings, model, "cuda", state) == proved.profile
    for other in (
        _known_profile(settings, model, "cpu", state),
        _known_profile(settings, dataclasses.replace(model, path=Path("/other")), "cuda", state),
        _known_profile(dataclasses.replace(settings, tool_call_parser="qwen3_xml"), model, "cuda", state),
        _known_profile(dataclasses.replace(settings, vllm_args=("--enforce-eager",)), model, "cuda", state),
        _known_profile(settings, model, "cuda", State("qwen3vl")),
    ):
        assert other is None
