"""The timer that looks at a service after a change, and what it runs: there only for as long as that is watched."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from installer import __version__
from installer.base.assets import PACKAGE
from installer.base.changes import Change, Remove, Run, Write
from installer.base.errors import Refused
from installer.base.files import Files
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import UNITS, Layout
from installer.base.templates import template
from installer.base.trust import of_others
from installer.units.syntax import FILTERS

LOOKS = 20  # at least, in the time of a soak
SELDOM, OFTEN = 60, 2  # seconds between two looks


def timer(layout: Layout) -> str:
    """With an @ no service can have this name."""
    return f"vllm-soak@{layout.service}.timer"


def paths(layout: Layout) -> tuple[Path, Path]:
    """What the timer runs, and the timer."""
    return UNITS / timer(layout).replace(".timer", ".service"), UNITS / timer(layout)


def beginning(layout: Layout, seconds: int) -> Iterator[Change]:
    """It looks while the change is still under way, and leaves it alone: so no moment is without somebody who looks."""
    look, clock = paths(layout)
    command = [sys.executable, "-m", "installer", "soak", "--service", layout.service, "--look"]
    words = {"version": __version__, "layout": layout}
    yield Write(
        look, template("soak.service.j2", FILTERS).render(**words, command=command, environment=environment_of_tool())
    )
    every = max(OFTEN, min(SELDOM, seconds // LOOKS))
    yield Write(clock, template("soak.timer.j2", FILTERS).render(**words, every=every))
    yield Run(("systemctl", "enable", clock.name), tr("watch on after a reboot, too"))
    yield Run(("systemctl", "restart", clock.name), tr("watch the service for {seconds} s", seconds=seconds))


def ending(layout: Layout, host: Host) -> Iterator[Change]:
    """As long as the timer runs it takes away what is left: so it is stopped last."""
    present = [path for path in paths(layout) if host.exists(path)]
    if present:
        clock = timer(layout)
        yield Run(("systemctl", "disable", clock), tr("watch the service no longer"), may_fail=True)
        yield from (Remove(path) for path in present)
        yield Run(("systemctl", "stop", clock), tr("stop {unit}", unit=clock), may_fail=True)
        yield Run(("systemctl", "daemon-reload"), tr("make systemd forget the unit"))


def environment_of_tool() -> dict[str, str]:
    """Where the tool is found that is not installed but runs from its checkout."""
    return {} if "site-packages" in PACKAGE.parts else {"PYTHONPATH": str(PACKAGE.parent)}


def check_tool() -> None:
    """Root runs it later, when nobody looks: so nobody else may be able to change it."""
    for path in (Path(sys.executable), PACKAGE / "__main__.py"):
        if found := of_others(Files(), path.absolute(), or_read_only=True):
            raise Refused(
                tr("{path} can be changed by others than root, and root would run it later", path=found),
                tr("install the tool where only root can write: sudo make install"),
            )
