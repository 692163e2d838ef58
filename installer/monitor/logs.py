"""Logs leave the host: the unit that sends them on, made once a server has taken a first entry, and taken away."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from installer import __version__
from installer.base.assets import PACKAGE
from installer.base.changes import Change, Remove, Run, Write
from installer.base.errors import Refused
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import UNITS
from installer.base.templates import template
from installer.checks.secret_files import exposed
from installer.monitor.ship import Task
from installer.monitor.sinks import Entry, deliver
from installer.runtime.vllm_notify import NotTaken
from installer.units.soaking import check_tool, environment_of_tool
from installer.units.syntax import FILTERS

UNIT = UNITS / "vllm-install-logs.service"
TASK = Path("/etc/vllm-install/logs.json")
# As the unit finds them, where systemd puts them.
CREDENTIAL = Path("/run/credentials") / UNIT.name / "task"
CURSOR = Path("/var/lib/vllm-install-logs/cursor")
LONGEST = 16 * 1024  # bytes of a file with an authorization


def beginning(task: Task, host: Host) -> Iterator[Change]:
    """A server that takes nothing is found out before anything is changed."""
    task = replace(task, since=int(time.time()))
    check_tool()
    _check_open()
    try:
        deliver(task.to, task.url, task.authorization, [_first(host)])
    except NotTaken as error:
        raise Refused(
            tr("the server does not take logs: {why}", why=error),
            tr("is the URL that of the server itself, without a path? nothing was changed"),
        ) from None
    yield Write(TASK, json.dumps(asdict(task)) + "\n", 0o600, secret=True)
    yield Write(UNIT, unit())
    yield Run(("systemctl", "daemon-reload"), tr("make systemd read the unit"))
    yield Run(("systemctl", "enable", UNIT.name), tr("send logs on after a reboot, too"))
    yield Run(("systemctl", "restart", UNIT.name), tr("send logs on"))


def ending(host: Host) -> Iterator[Change]:
    if host.exists(UNIT):
        yield Run(("systemctl", "disable", "--now", UNIT.name), tr("send logs on no longer"), may_fail=True)
        yield Run(("systemctl", "clean", "--what=state", UNIT.name), tr("forget what was sent"), may_fail=True)
        yield Remove(UNIT)
        yield Run(("systemctl", "daemon-reload"), tr("make systemd forget the unit"))
    if host.exists(TASK):
        yield Remove(TASK)
        yield Remove(TASK.parent, only_if_empty=True)


def unit() -> str:
    """Nothing in it is of what anybody typed."""
    command = [sys.executable, "-m", "installer", "monitor", "logs", "--send"]
    return template("monitor/logs.service.j2", FILTERS).render(
        version=__version__, command=command, task=TASK, environment=environment_of_tool()
    )


def authorization(path: str, host: Host) -> str:
    """The value of the header, from a file of root's."""
    if why := exposed(host, str(Path(path).absolute())):
        raise Refused(why, tr("keep it where only root can write: chown root:root, chmod 600"))
    text = host.read_of(Path(path), (0, os.geteuid()), LONGEST) or ""
    if not text.strip() or not text.strip().isprintable():
        raise Refused(tr("{path} holds no line such as: Bearer TOKEN", path=path))
    return text.strip()


def known(host: Host) -> Task | None:
    """Where logs go now; None where they stay here."""
    text = host.read_of(TASK, (0, os.geteuid()), LONGEST)
    try:
        return Task(**json.loads(text)) if text else None
    except (ValueError, TypeError):
        return None


def _check_open() -> None:
    """It is run by a user who is nobody, who has to be able to read it."""
    for path in (Path(sys.executable), PACKAGE / "__main__.py"):
        for part in path.resolve().parents:
            if not part.stat().st_mode & 0o001:
                raise Refused(
                    tr("{path} can be read by root alone, and logs are sent by another user", path=part),
                    tr("install the tool where all can read it: sudo make install"),
                )


def _first(host: Host) -> Entry:
    """What the server is asked to take, as any other entry."""
    now = time.time_ns() // 1000
    boot = host.word(Path("/proc/sys/kernel/random/boot_id")).replace("-", "")
    return {
        "__CURSOR": f"vllm-install;{boot};{now}",
        "__REALTIME_TIMESTAMP": str(now),
        "__MONOTONIC_TIMESTAMP": str(time.monotonic_ns() // 1000),
        "_BOOT_ID": boot,
        "_HOSTNAME": host.word(Path("/proc/sys/kernel/hostname")),
        "SYSLOG_IDENTIFIER": "vllm-install",
        "PRIORITY": "6",
        "MESSAGE": "the logs of the vLLM services of this host come here from now on",
    }
