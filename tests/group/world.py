"""Hosts of a group without a network: each a temporary root on which real transactions run, reached by a wire that is
cut where a test says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from installer.base.errors import InstallError
from installer.base.host import Host
from installer.base.report import Report
from installer.flow import deploy, needs, rotate
from installer.flow.request import KeyChoice, Request
from installer.flow.wanted import Wanted
from installer.group import change, facts
from installer.group.job import Job
from installer.group.member import Member, Ran
from installer.group.reach import Lost, Team
from installer.spec import keys
from installer.spec.asked import assigned, load_settings
from installer.spec.group import Group, Peer, load_group
from installer.spec.records import load_state
from installer.spec.settings import Settings
from installer.spec.values import REPLICAS
from tests.flow.test_transaction import LAYOUT

NAMES = ("gpu1", "gpu2")
SERVICE = LAYOUT.service
KEY = keys.Key(keys.DEFAULT, keys.digest("sk-of-the-group-0123456789abcdefghij")).argument


class Killed(BaseException):
    """What no code hears: SIGKILL, or a power cut."""


class World:
    """`cut` is told each request before it is carried out (False) and after (True), and may raise Lost or Killed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.hosts = {name: Host(root / name) for name in NAMES}
        self.cut: Callable[[str, str, bool], None] = lambda *_: None
        self.fault: dict[str, BaseException] = {}  # what the verb of a host ends with, once
        self.said: list[str] = []
        self.mode = REPLICAS
        self.stop: dict[str, Callable[[], None]] = {}  # what ends that which a host does
        self.switched: set[str] = set()  # hosts that have the change, whether or not anybody heard it

    @classmethod
    def of_bare(cls, root: Path, bare: Path) -> World:
        """Two copies of one host."""
        for name in NAMES:
            shutil.copytree(bare, root / name, symlinks=True)
            Host(root / name).write(Path("/etc/machine-id"), f"{name}\n")
        return cls(root)

    def copy(self, root: Path) -> World:
        shutil.copytree(self.root, root, symlinks=True)
        copied = World(root)
        copied.mode = self.mode
        return copied

    def team(self, *away: str) -> Team:
        lost = {name: Lost(f"{name}: it is away") for name in away}
        return Team([Wire(name, self) for name in NAMES if name not in away], lost)

    def group(self, name: str = NAMES[0]) -> Group:
        return load_group(self.hosts[name], LAYOUT) or Group("the-group", tuple(map(Peer, NAMES)), self.mode)

    def settle(self, *away: str) -> Group | None:
        team = self.team(*away)
        return change.settle(team, facts.looks(team), Told(self.said))

    def run(self, job: Job) -> Group:
        """As the command line does it, from either host."""
        team = self.team()
        settled = change.settle(team, facts.looks(team), Told(self.said))
        return change.run(team, settled or self.group(), job, Host(self.root / "leader"), Told(self.said))

    def deploy(self, group_key: str | None = None) -> Group:
        more = dict.fromkeys(NAMES, ("--held-key", KEY))
        return self.run(Job("deploy", ("deploy",), more=more, stages=True, group_key=group_key))

    def set_apikey(self, key: str) -> Group:
        return self.run(Job("set-apikey default", ("set-apikey",), text=key, looks=False, of_keys=True))

    def set(self, *assignments: str) -> Group:
        return self.run(Job(" ".join(("set", *assignments)), ("set", "--", *assignments), stages=True))

    # What is on the hosts

    def port(self, name: str) -> int | None:
        state = load_state(self.hosts[name], LAYOUT)
        return state.proved.settings.port if state and state.proved else None

    def ports(self) -> list[int | None]:
        return [self.port(name) for name in NAMES]

    def check_settled(self) -> None:
        """Nothing is half done on any host, and all say the same."""
        records = [load_group(host, LAYOUT) for host in self.hosts.values()]
        assert records[0] == records[1]
        for name, host in self.hosts.items():
            state = load_state(host, LAYOUT)
            assert records[0] is None or records[0].change is None, name
            assert state is None or state.unfinished is None, name
            assert not host.exists(LAYOUT.before_group), name
            assert records[0] is not None or state is None, name
        assert len(set(self.ports())) == 1, self.ports()


class Wire:
    def __init__(self, name: str, world: World) -> None:
        self.name, self.world = name, world
        host = world.hosts[name]
        self.member = Member(SERVICE, host, Report(), lambda words, text, _: run(host, words, text, self._fault(words)))

    def _fault(self, words: Sequence[str]) -> BaseException | None:
        looks = {"--dry-run", "--stage"} & set(words)
        return None if looks else self.world.fault.pop(self.name, None)

    def ask(self, do: str, **given: Any) -> Any:
        self.world.cut(self.name, do, False)
        answer = json.loads(json.dumps(self.member.answer({"do": do, **json.loads(json.dumps(given))})))
        if do == "switch" and answer["code"] == 0:
            self.world.switched.add(self.name)
        self.world.cut(self.name, do, True)
        return answer

    def stop(self) -> None:
        self.world.stop.get(self.name, lambda: None)()


def run(host: Host, words: Sequence[str], text: str, fault: BaseException | None) -> Ran:
    """A verb of ours, by the same functions that the command line calls."""
    from installer.flow import prove

    try:
        serving = prove.serving
        if fault and words[0] == "set-apikey":
            raise fault
        if fault:

            def failing(want: Wanted, at: Host, *given: Any) -> None:
                if at is not host:  # whose change runs at the same time
                    serving(want, at, *given)
                    return
                prove.serving = serving
                raise fault

            prove.serving = failing  # type: ignore[assignment]
        out = _verb(host, list(words), text)
    except InstallError as error:
        return Ran(error.exit_code, "", error.message, error.hint)
    return Ran(0, out)


def _verb(host: Host, words: list[str], text: str) -> str:
    """What it prints."""
    verb, options, arguments = words[0], words[1 : words.index("--")] if "--" in words else words[1:], words
    given = assigned(arguments[arguments.index("--") + 1 :]) if "--" in words and verb == "set" else {}
    if verb == "set-apikey":
        rotate.set_key(SERVICE, rotate.Rotation(text=text), host, Report(), lambda _: None)
        return ""
    settings = _settings(host, given)
    held = tuple(keys.parse(word) for word in options if word.startswith("default"))
    request = Request(verb, settings, KeyChoice(held=held))
    if "needs" in options:
        return json.dumps([asdict(need) for need in needs.of(request, host, Report())])
    if "--dry-run" in options:
        deploy.plan(request, host, Report())
    elif "--stage" in options:
        return json.dumps(asdict(deploy.stage(request, host, Report())))
    else:
        begin = deploy.deploy if verb == "deploy" else deploy.change
        begin(request, host, Report(), lambda _: None)
    return ""


def _settings(host: Host, given: Mapping[str, str]) -> Settings:
    state = load_state(host, LAYOUT)
    now = state.proved.settings if state and state.proved else Settings(model="builtin:tiny", offline=True)
    kept = {"model": now.model, "offline": "1", "port": str(now.port)}
    return load_settings(SERVICE, {}, {}, kept | dict(given))


class Told(Report):
    def __init__(self, said: list[str]) -> None:
        self._said = said

    def note(self, text: str) -> None:
        self._said.append(text)

    warn = note
