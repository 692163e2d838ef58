"""What a member writes of its group: believed while it is written, and as nothing wherever it is anything else."""

from __future__ import annotations

import json
import os
import time

import pytest

from installer.base.host import Host
from installer.base.layout import Layout
from installer.runtime.vllm_member import SHOWN, STARTING
from installer.units.graph import handle
from installer.units.group import LONGEST, SILENT, STALE, Standing, standing

MEMBER = handle(Layout("qwen3vl"))
FILE = MEMBER.run_dir / SHOWN


def says(host: Host, text: str, age: float = 0) -> Standing:
    host.write(FILE, text)
    at = time.time() - age
    os.utime(host.at(FILE), (at, at))
    return standing(host, MEMBER)


def told(stage: object = "", lost: object = "") -> str:
    return json.dumps({"stage": stage, "lost": lost})


def test_what_it_waits_for_is_read() -> None:
    assert Standing("waiting for the group: 10.0.0.2", "").waits
    assert not Standing("", "").waits
    assert not Standing(STARTING, "").waits


def test_what_is_written_is_believed_for_a_while(host: Host) -> None:
    assert standing(host, MEMBER) == Standing(SILENT, "")
    assert says(host, told(lost="10.0.0.2 is lost")) == Standing("", "10.0.0.2 is lost")
    assert says(host, told(), STALE + 1) == Standing(SILENT, ""), "one that is frozen serves nobody"
    assert says(host, told("a\x1b[31m\nb")).stage.isprintable()


@pytest.mark.parametrize("text", ["", "[", "[]", "1", "{}", '{"stage": ""}', "[" * 10000, "x" * LONGEST * 2])
def test_anything_else_is_no_word_of_a_group_that_serves(host: Host, text: str) -> None:
    assert says(host, text) == Standing(SILENT, "")


def test_nothing_is_read_by_way_of_a_link(host: Host) -> None:
    says(host, told())
    host.at(FILE).rename(host.at(FILE).with_name("elsewhere"))
    host.at(FILE).symlink_to("elsewhere")
    assert standing(host, MEMBER) == Standing(SILENT, "")
