"""Which weights these are, so that two hosts can compare it: by their bytes, whatever they are called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from installer.base.host import Host
from installer.spec.model import Model
from installer.weights.contents import identity

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def of(host: Host, name: str = "/srv/m") -> str:
    return identity(Model("m", Path(name), None, "local"), host)


@pytest.fixture
def host(host: Host) -> Host:
    for name in ("/srv/m", "/srv/other"):
        host.write(Path(name) / "config.json", "{}")
        host.write(Path(name) / "part/model.safetensors", "weights")
    return host


def test_a_commit_says_it_by_itself(host: Host) -> None:
    assert identity(Model("q/m", Path("/nowhere"), COMMIT, "hub"), host) == f"q/m@{COMMIT}"


def test_equal_directories_are_equal_by_any_name_and_with_whatever_tools_left_there(host: Host) -> None:
    host.write(Path("/srv/other/.cache/notes"), "x")
    os.mkfifo(host.at(Path("/srv/other/pipe")))
    assert of(host).startswith("m@sha256:")
    assert of(host) == of(host, "/srv/other")


@pytest.mark.parametrize(
    ("name", "text"), [("config.json", "{ }"), ("part/model.safetensors", "weighty"), ("more.safetensors", "")]
)
def test_a_byte_that_differs_is_another_model(name: str, text: str, host: Host) -> None:
    host.write(Path("/srv/other") / name, text)
    assert of(host) != of(host, "/srv/other")


def test_a_file_of_another_name_is_another_model(host: Host) -> None:
    host.at(Path("/srv/other/config.json")).rename(host.at(Path("/srv/other/generation_config.json")))
    assert of(host) != of(host, "/srv/other")
