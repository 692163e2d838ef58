"""What is refused between the settings and the plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from installer.base.errors import Refused, UsageError
from installer.base.host import Host
from installer.flow.resolve import KeyChoice, Request, _check_form, _check_senses
from installer.spec.model import Model, ModelFile
from installer.spec.settings import Settings

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
