"""What shows on a host that a running service would make way for its successor."""

from __future__ import annotations

import os
import stat

import pytest

from installer.base.host import Host
from installer.base.layout import Layout
from installer.units import systemd
from installer.units.graph import handle
from installer.units.systemd import hands_over

LAYOUT = Layout("qwen3vl")
MEMBER = handle(LAYOUT)
OURS = "{ path=/e/bin/python ; argv[]=/e/bin/python /opt/vllm-install/runtime/1/vllm_launcher.py reload --api-key x ; }"


@pytest.fixture
def reloads(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What systemd says of the unit."""
    shown = {"ExecReload": OURS}
    monkeypatch.setattr(systemd, "unit_properties", lambda *_: shown)
    return shown


def listen(host: Host) -> None:
    host.make_dir(LAYOUT.run_dir)
    os.mknod(host.at(MEMBER.control), stat.S_IFSOCK | 0o600)


def test_a_supervisor_listens_to_its_successor(host: Host, reloads: dict[str, str]) -> None:
    assert not hands_over(host, MEMBER), "one of an earlier version does not"
    listen(host)
    assert hands_over(host, MEMBER)


@pytest.mark.parametrize("theirs", ["", "{ path=/bin/true ; argv[]=/bin/true ; }"])
def test_a_reload_that_an_admin_replaced_brings_no_successor(host: Host, reloads: dict[str, str], theirs: str) -> None:
    listen(host)
    reloads["ExecReload"] = theirs
    assert not hands_over(host, MEMBER)


def test_a_file_or_a_link_is_nobody_who_listens(host: Host, reloads: dict[str, str]) -> None:
    listen(host)
    host.at(MEMBER.control).rename(host.at(LAYOUT.run_dir) / "elsewhere")
    host.at(MEMBER.control).symlink_to("elsewhere")
    assert not hands_over(host, MEMBER)
    host.remove(MEMBER.control)
    host.write(MEMBER.control, "")
    assert not hands_over(host, MEMBER)
