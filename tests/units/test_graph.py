"""The units of a service: today one, and the one that people type."""

from __future__ import annotations

from pathlib import Path

from installer.base.layout import Layout
from installer.units.graph import handle, members
from installer.units.render import fingerprint, render
from tests.kit.targets import target

LAYOUT = Layout("qwen3vl")


def test_a_service_is_one_unit_of_its_name() -> None:
    (member,) = members(LAYOUT)
    assert member == handle(LAYOUT)
    assert (member.name, member.path) == ("qwen3vl.service", LAYOUT.unit)
    assert member.drop_ins == Path("/etc/systemd/system/qwen3vl.service.d")
    assert member.wants_link == Path("/etc/systemd/system/multi-user.target.wants/qwen3vl.service")


def test_every_member_is_rendered_and_its_keys_are_its_own_to_say() -> None:
    files = render(target(), LAYOUT)
    for member in members(LAYOUT):
        text = files[member.path].text
        assert fingerprint(text, member.path, LAYOUT) == fingerprint(
            text.replace("--api-key default=sha256:", "--api-key mine=sha256:"), member.path, LAYOUT
        )
        assert fingerprint(text, member.path, LAYOUT) != fingerprint(text + "Nice=5\n", member.path, LAYOUT)
