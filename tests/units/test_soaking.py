"""The timer of a soak and what it runs: as systemd reads them, and by a tool that only root can change."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from installer.base.changes import Remove, Run, Write
from installer.base.errors import Refused
from installer.base.host import Host
from installer.base.layout import Layout
from installer.units import soaking
from installer.units.syntax import exec_line
from tests.units import test_render
from tests.units.test_render import analyze, exposure

LAYOUT = Layout("qwen3vl")
distribution = test_render.distribution
LOOK, CLOCK = soaking.paths(LAYOUT)


def texts(seconds: int) -> dict[Path, str]:
    return {change.path: change.text for change in soaking.beginning(LAYOUT, seconds) if isinstance(change, Write)}


def test_no_service_can_have_such_a_name() -> None:
    assert (LOOK.name, CLOCK.name) == ("vllm-soak@qwen3vl.service", "vllm-soak@qwen3vl.timer")


def test_it_runs_the_tool_that_made_the_change() -> None:
    words = exec_line(texts(1800)[LOOK])
    assert words == [sys.executable, "-m", "installer", "soak", "--service", "qwen3vl", "--look"]
    ran = [change.argv for change in soaking.beginning(LAYOUT, 1800) if isinstance(change, Run)]
    assert ran == [("systemctl", "enable", CLOCK.name), ("systemctl", "restart", CLOCK.name)]


@pytest.mark.parametrize(("seconds", "every"), [(10, 2), (60, 3), (1800, 60), (86400, 60)])
def test_it_looks_often_where_the_time_is_short(seconds: int, every: int) -> None:
    assert f"OnActiveSec={every}s\nOnUnitInactiveSec={every}s\n" in texts(seconds)[CLOCK]


def test_systemd_has_nothing_to_say_about_it(distribution: Path) -> None:
    host = Host(distribution)
    for path, text in texts(1800).items():
        host.write(path, text)
    host.write(Path(sys.executable), "", 0o755)
    verified = analyze(distribution, "verify", LOOK.name, CLOCK.name)
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")
    assert exposure(distribution, LOOK.name) < 6, "root, which changes units; but no more than that takes"


def test_what_takes_it_away_stops_the_timer_last(tmp_path: Path) -> None:
    host = Host(tmp_path)
    assert list(soaking.ending(LAYOUT, host)) == []
    host.write(LOOK, "")
    host.write(CLOCK, "")
    changes = list(soaking.ending(LAYOUT, host))
    assert [change.argv[1] for change in changes if isinstance(change, Run)] == ["disable", "stop", "daemon-reload"]
    assert changes[1:3] == [Remove(LOOK), Remove(CLOCK)]
    host.remove(LOOK)
    assert [change for change in soaking.ending(LAYOUT, host) if isinstance(change, Remove)] == [Remove(CLOCK)]


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "tool/installer"
    package.mkdir(parents=True)
    (package / "__main__.py").touch()
    (tmp_path / "tool/python").touch()
    monkeypatch.setattr(soaking, "PACKAGE", package)
    monkeypatch.setattr(soaking.sys, "executable", str(tmp_path / "tool/python"))
    return package


@pytest.mark.root
def test_a_tool_of_root_s_is_taken(tool: Path) -> None:
    soaking.check_tool()


@pytest.mark.root
@pytest.mark.parametrize("part", ["", "installer", "installer/__main__.py", "python"])
@pytest.mark.parametrize("how", ["owner", "group", "others"])
def test_a_tool_that_somebody_else_can_change_is_run_by_no_timer(tool: Path, part: str, how: str) -> None:
    path = tool.parent / part
    if how == "owner":
        os.chown(path, 65534, 0)
    else:
        path.chmod(path.stat().st_mode | {"group": 0o020, "others": 0o002}[how])
    with pytest.raises(Refused, match="can be changed by others than root") as caught:
        soaking.check_tool()
    assert caught.value.hint.endswith("sudo make install")


@pytest.mark.root
def test_what_a_link_leads_to_counts_as_well(tool: Path, tmp_path: Path) -> None:
    (tmp_path / "tool/elsewhere").mkdir()
    other = tmp_path / "tool/elsewhere/python"
    other.touch()
    os.chown(other, 65534, 0)
    (tmp_path / "tool/python").unlink()
    (tmp_path / "tool/python").symlink_to(other)
    with pytest.raises(Refused, match="elsewhere/python can be changed"):
        soaking.check_tool()
