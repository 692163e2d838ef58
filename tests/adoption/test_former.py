"""What of an old unit is set aside when ours takes its place: its own files, and nobody else's."""

from __future__ import annotations

from pathlib import Path

import pytest

from installer.adoption import former, old_unit
from installer.base.changes import Remove
from installer.base.errors import Refused
from installer.base.host import Host
from installer.base.layout import Layout

UNIT = Path("/etc/systemd/system/llm.service")
OWN = [
    Path("/etc/systemd/system/llm.service.d/nice.conf"),
    Path("/run/systemd/system/llm.service.d/now.conf"),
    Path("/etc/systemd/system.control/llm.service.d/50-MemoryMax.conf"),
    Path("/usr/local/lib/systemd/system/llm.service.d/ours.conf"),
]
OTHERS = [
    Path("/etc/systemd/system/service.d/all.conf"),
    Path("/etc/systemd/system/llm-.service.d/of-a-prefix.conf"),
    Path("/usr/lib/systemd/system/llm.service.d/of-a-package.conf"),
]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    host = Host(root=tmp_path)
    for path in (UNIT, *OWN, *OTHERS[1:]):
        host.write(path, "[Service]\n")
    shared = tmp_path / OTHERS[0].relative_to("/")
    shared.parent.mkdir()
    shared.symlink_to("/usr/share/of-a-package/all.conf")
    return host


def test_only_what_was_written_here_for_this_unit_is_removed(host: Host) -> None:
    found = former.of("llm.service", (UNIT, *OWN, *OTHERS), {}, host, Layout("llm"))
    removed = [change.path for change in former.set_aside(found) if isinstance(change, Remove)]
    assert removed == OWN
    assert found.paths == {UNIT, *OWN}


def test_a_drop_in_of_its_own_that_is_a_link_is_refused(host: Host, tmp_path: Path) -> None:
    link = tmp_path / OWN[0].relative_to("/")
    link.unlink()
    link.symlink_to("/srv/elsewhere.conf")
    with pytest.raises(Refused, match="is a link"):
        former.of("llm.service", (UNIT, *OWN), {}, host, Layout("llm"))


def test_of_a_unit_of_another_name_nothing_is_removed(host: Host) -> None:
    found = former.of("llm.service", (UNIT, *OWN), {}, host, Layout("other"))
    assert [change for change in former.set_aside(found) if isinstance(change, Remove)] == []


def test_what_stays_is_not_shown_as_if_it_went(tmp_path: Path) -> None:
    host = Host(root=tmp_path)
    for path in (*OWN, *OTHERS):
        host.write(path, f"[Service]\n# {path.name}\n")
    host.write(UNIT, "[Service]\nExecStart=/usr/bin/vllm serve org/model\n")
    shown = old_unit.read("llm.service", (UNIT, *OWN, *OTHERS), host, is_installed=True).shown
    assert "vllm serve org/model" in shown
    assert all(path.name in shown for path in OWN)
    assert not any(path.name in shown for path in OTHERS)
