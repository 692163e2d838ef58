"""The units that tell an admin what becomes of a service: one that looks, its timer, and one that sends."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from installer import __version__
from installer.base.changes import Change, Remove, Run, Write
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import SENDER, UNITS, Layout
from installer.base.templates import template
from installer.forms.interpreter import interpreter
from installer.spec.target import Target
from installer.units.soaking import check_tool, environment_of_tool
from installer.units.syntax import FILTERS

EVERY = 600  # seconds after which what could not be told is tried again


def unit(layout: Layout) -> str:
    """With an @ no service can have this name."""
    return f"vllm-alarm@{layout.service}.service"


def sender(layout: Layout) -> str:
    return f"{SENDER}@{layout.service}.service"


def clock(layout: Layout) -> str:
    return f"vllm-alarm@{layout.service}.timer"


def paths(layout: Layout) -> tuple[Path, ...]:
    return UNITS / unit(layout), UNITS / clock(layout), UNITS / sender(layout)


def texts(target: Target, layout: Layout, runtime: Path) -> dict[Path, str]:
    """Nothing that anybody typed stands in them: whom to tell is looked up in the settings each time."""
    look = [sys.executable, "-m", "installer", "alarm", "--service", layout.service, "--look"]
    send = [str(interpreter(target.engine, layout)), "-EsS", str(runtime / "vllm_notify.py")]
    words = {"version": __version__, "layout": layout, "every": EVERY}
    looks, timer, sends = paths(layout)
    return {
        sends: template("notify.service.j2", FILTERS).render(**words, command=send),
        looks: template("alarm.service.j2", FILTERS).render(**words, command=look, environment=environment_of_tool()),
        timer: template("alarm.timer.j2", FILTERS).render(**words),
    }


def due(target: Target, layout: Layout, runtime: Path, host: Host) -> Iterator[Change]:
    """Where somebody wants to be told these are there, and where nobody does they are not."""
    if not target.settings.notifies:
        yield from ending(layout, host)
        return
    found = texts(target, layout, runtime)
    changed = [Write(path, text) for path, text in found.items() if host.read(path) != text]
    if changed:
        check_tool()
    yield from changed
    if changed or not host.exists(UNITS / "timers.target.wants" / clock(layout)):
        yield Run(("systemctl", "enable", clock(layout)), tr("tell what becomes of the service after a reboot, too"))
        yield Run(("systemctl", "restart", clock(layout)), tr("tell what becomes of the service"))


def ending(layout: Layout, host: Host) -> Iterator[Change]:
    present = [path for path in paths(layout) if host.exists(path)]
    if present:
        yield Run(
            ("systemctl", "disable", "--now", clock(layout)), tr("tell nothing of the service any more"), may_fail=True
        )
        running = ("systemctl", "stop", unit(layout), sender(layout))
        yield Run(running, tr("stop {unit}", unit=unit(layout)), may_fail=True)
        yield from (Remove(path) for path in present)
        yield Run(("systemctl", "daemon-reload"), tr("make systemd forget the unit"))
        failed = [f"{name[:-1]}[{name[-1]}]" for name in (unit(layout), sender(layout))]
        yield Run(("systemctl", "reset-failed", *failed), tr("clear its failed state"), may_fail=True)


def rouse(host: Host, layout: Layout) -> None:
    """Something has become of the service: let it be looked at, which nobody waits for."""
    if host.exists(UNITS / unit(layout)):
        host.systemctl("start", "--no-block", unit(layout), check=False)
