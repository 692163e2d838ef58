"""A throwaway server for one model: engine, launcher, guard and sandbox of a service, and nothing of it stays.

Our side holds the input of a keeper (runtime/vllm_keeper.py). Its end, which our own death brings as well, ends
everything. Where systemd runs, the keeper is a transient unit: then the server has a service's sandbox and a user of
its own, and not even the keeper's death leaves anything. The keeper is in the server's hands: both have one user.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from installer.acceptance.kept import BOOTSTRAP, Kept, can_confine, unit_words
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import Layout
from installer.base.report import Report
from installer.checks import preflight
from installer.diagnosis import signatures
from installer.diagnosis.finding import FAULT
from installer.diagnosis.said import translated
from installer.families.known import refusal_in
from installer.flow import deploy, fit, prove, steps, transaction
from installer.flow.request import Request
from installer.flow.resolve import Resolved, resolve
from installer.forms.venv import python_of
from installer.spec import keys
from installer.spec.asked import load_settings
from installer.spec.settings import Settings
from installer.spec.state import State
from installer.spec.target import Target
from installer.units import render
from installer.units.custody import Custody
from installer.units.syntax import environment, exec_line

SERVICE = "vllm-install-test"  # no service can have this name's unit, because none is ever written
MARK = "TRIAL_MARK"
TEMPORARY = ("/var/tmp", "/tmp")  # noqa: S108 the first that is fit


@dataclass(frozen=True)
class Trial:
    """A throwaway server that has answered."""

    target: Target
    unit_text: str
    key: str
    keeper: Keeper
    custody: Custody

    def why_ended(self) -> prove.NotProved | None:
        """What ended the server, if it is not there any more."""
        return self.keeper.failure() if self.keeper.process.poll() is not None else None


class Keeper(Kept):
    def failure(self) -> prove.NotProved:
        for message in self.messages():
            if "ended" in message:
                return self._explained(message)
            if "error" in message:
                self.said.append(str(message["error"]))
        said = "\n".join(self.said) or tr("it said nothing")
        return prove.NotProved(tr("the server's keeper ended early: {said}", said=said))

    @staticmethod
    def _explained(message: Mapping[str, object]) -> prove.NotProved:
        log = message.get("log")
        lines = [str(line) for line in log] if isinstance(log, list) else []
        what = tr("the throwaway server ended with status {status}", status=message["ended"])
        found = prove.reason_in(lines, what, "")
        return prove.NotProved(found.message, _hint(lines))

    def wait_until_ready(self, report: Report) -> None:
        """However long it takes: the watcher ends a start that makes no progress."""
        with report.waiting(tr("starting a throwaway server")) as say:
            for message in self.messages():
                if "status" in message:
                    say(translated(str(message["status"])))
                if "ended" in message:
                    raise self._explained(message)
                if message.get("ready"):
                    return
        raise self.failure()


def _hint(lines: list[str]) -> str:
    """What helps; the commands for a service do not, because there is none."""
    refusal = refusal_in(lines)
    if refusal and refusal.estimated_max:
        return tr("ask for at most {fits}: --max-len {fits}", fits=refusal.estimated_max)
    faults = [finding for finding in signatures.explain(lines, SERVICE) if finding.severity == FAULT]
    return faults[0].cause if faults else ""


def settings_of(flags: Mapping[str, str]) -> Settings:
    """What was typed over the environment and the defaults; on a free port of this host alone, unless one is named.

    Nobody calls it before it is up, so nobody is held.
    """
    given = {"host": "127.0.0.1", "port": str(Host.free_port()), **flags}
    return replace(load_settings(Settings.service, {}, os.environ, given), service=SERVICE, hold=0)


@contextlib.contextmanager
def server(settings: Settings, host: Host, report: Report) -> Iterator[Trial]:
    """A server that answers; whatever happens inside, nothing of it is left afterwards."""
    layout = Layout(settings.service)
    resolved = resolve(Request("test", settings), State(SERVICE), host, report, for_real=False, throwaway=True)
    _fetch(resolved, host, report)
    fit.check_context(resolved.want.target, resolved.facts, State(SERVICE), host, report)
    key = keys.generate("test")
    target = replace(resolved.want.target, keys=(keys.Key(keys.DEFAULT, keys.digest(key)),))
    unit_text = render.unit(target, layout)
    mark = secrets.token_hex(8)
    wrapper = _wrapper(host, unit_text)
    home = _home(is_private=bool(wrapper))
    try:
        python = python_of(layout.engines / target.engine.id)
        with host.keep(*wrapper, python, "-I", "-c", BOOTSTRAP, SERVICE) as process:
            keeper = Keeper(process)
            keeper.start("vllm_keeper.py", _task(unit_text, layout, key, mark, home))
            keeper.wait_until_ready(report)
            yield Trial(target, unit_text, key, keeper, Custody(host, _unit() if wrapper else ""))
    finally:
        # A keeper that was killed itself left its work to us.
        host.end_marked(MARK, mark)
        if not wrapper:
            host.remove(home)


def _fetch(resolved: Resolved, host: Host, report: Report) -> None:
    """Engine and weights, where they are not here yet; they stay, as those of a service would."""
    want = resolved.want
    changes = [*steps.engine(want, host), *steps.weights(want, host)]
    if not changes:
        return
    problems = preflight.check_space(deploy.space_needed(changes, want.layout), resolved.facts)
    if problems:
        raise preflight.refuse(problems)
    transaction.apply(changes, host, report)


# The keeper


def _wrapper(host: Host, unit_text: str) -> list[str]:
    """The sandbox of a service and a user that exists no longer than it; without systemd, nothing of that."""
    return unit_words(_unit(), "vLLM on trial", unit_text, ["TimeoutStopSec=20"]) if can_confine(host) else []


def _unit() -> str:
    return f"{SERVICE}-{os.getpid()}.service"


def _home(*, is_private: bool) -> Path:
    """Where the server lives: on a disk rather than in memory, and where libraries can be loaded from.

    A unit's /var/tmp and /tmp are its own, and go with it; there the place needs no name that nobody else has.
    """
    places = TEMPORARY if is_private else (os.environ.get("TMPDIR") or TEMPORARY[0], *TEMPORARY)
    suitable = (p for p in places if os.access(p, os.W_OK | os.X_OK) and not os.statvfs(p).f_flag & os.ST_NOEXEC)
    place = Path(next(suitable, TEMPORARY[0]))
    return place / SERVICE if is_private else Host.private_dir(place, f"{SERVICE}-")


def _task(unit_text: str, layout: Layout, key: str, mark: str, home: Path) -> dict[str, object]:
    return {
        "home": str(home),
        "files": dict(render.runtime_files()),
        "command": exec_line(unit_text),
        "environment": {**environment(unit_text), MARK: mark},
        "cache": str(layout.cache_dir),
        "key": key,
    }
