"""Which units are started anew, how and in which order: a plan for every state that a change or a cut can leave."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest

from installer.base.changes import Change, Handover, Remove, Restart, Run
from installer.base.host import Host
from installer.base.layout import Layout
from installer.base.report import Report
from installer.flow import prove, roll, running
from installer.flow.prove import NotProved
from installer.flow.roll import Drain, ReloadGateway, Renew, Undrain, without_handover
from installer.flow.wanted import Wanted
from installer.spec.records import save_state
from installer.spec.state import State
from installer.spec.target import Placed, Target
from installer.units import haproxy
from installer.units.gateway import config_file
from installer.units.graph import handle, members, on_disk, units
from installer.units.haproxy import GatewayState, MemberState, NoGateway
from installer.units.keyring import TakeKeys
from installer.units.render import File, process_digest, render
from installer.units.systemd import MainProcess
from tests.kit.targets import replicated, wanted

LAYOUT = Layout("qwen3vl")
GPUS = tuple((Placed(f"GPU-{number}", "NVIDIA L4", f"/dev/nvidia{number}"),) for number in range(3))
BARE = wanted(kind="cpu")
Units = dict[int, MainProcess]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(Host(tmp_path), monkeypatch)


@functools.cache
def rendered(target: Target, layout: Layout) -> dict[Path, File]:
    return render(target, layout)


@functools.cache
def digest(target: Target, layout: Layout, number: int = 0) -> str:
    return process_digest(target, layout, number)


class World:
    """A host as far as a plan looks at it: files, the process of each unit, whom the gateway leaves out."""

    def __init__(self, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
        self.host = host
        self.processes: Units = {}
        self.out: set[int] = set()
        self.down: set[int] = set()
        self.known = {1, 2}
        self.hands_over = False
        self.read: str | None = None
        self.is_current = True
        monkeypatch.setattr(running, "running_process", lambda _, member: self.processes.get(member.number))
        monkeypatch.setattr(running, "hands_over", lambda *_: self.hands_over)
        monkeypatch.setattr(running, "render", rendered)
        monkeypatch.setattr(running, "process_digest", digest)
        monkeypatch.setattr(haproxy, "state", self._state)
        monkeypatch.setattr(haproxy, "has_read", self._has_read)

    def _has_read(self, host: Host, layout: Layout, config: Path) -> bool:
        """As HAProxy would: of what lies there, if the test says nothing else."""
        assert (host, layout, config) == (self.host, LAYOUT, config_file(LAYOUT))
        return self.is_current and self.read in (None, self.host.read(config_file(LAYOUT)))

    def _state(self, host: Host, layout: Layout) -> GatewayState:
        assert (host, layout) == (self.host, LAYOUT)
        if 0 not in self.processes:
            raise NoGateway("nobody is there")
        shown = {number: "DOWN" if number in self.down else "UP" for number in self.known}
        shown |= dict.fromkeys(self.out & self.known, "MAINT")
        return GatewayState({number: MemberState(status, "L7OK", 0) for number, status in shown.items()}, 0)

    def lies(self, want: Wanted) -> None:
        for path, file in rendered(want.target, LAYOUT).items():
            if path in (LAYOUT.unit, config_file(LAYOUT)) or LAYOUT.number_of(path.name):
                self.host.at(path).parent.mkdir(parents=True, exist_ok=True)
                self.host.at(path).write_text(file.text)
                self.host.at(path).chmod(file.mode)

    def runs(self, want: Wanted, *numbers: int, **changed: Any) -> None:
        keys = frozenset((key.name, key.digest) for key in want.target.keys)
        for number in numbers:
            is_gateway = bool(want.target.replicas) and not number
            gpus = frozenset(gpu.uuid for gpu in want.target.of(number).gpus)
            found = MainProcess(
                1,
                digest(want.target, LAYOUT, number),
                frozenset() if is_gateway else keys,
                True,
                gpus,
                is_gateway=is_gateway,
                has_door=number > 0,
            )
            self.processes[number] = dataclasses.replace(found, **changed)

    def becomes(self, want: Wanted) -> None:
        """A host where that was proved, and nothing else is left."""
        for path in (config_file(LAYOUT), *(member.path for member in on_disk(self.host, LAYOUT))):
            self.host.remove(path)
        self.processes, self.out, self.known, self.read = {}, set(), set(), None
        self.lies(want)
        self._starts(0, want)
        for replica in want.target.replicas:
            self._starts(replica.number, want)

    def _starts(self, number: int, want: Wanted) -> None:
        self.runs(want, number)
        if not number and want.target.replicas:
            self._reads(want)
        elif not number:
            self.known = set()
            for member in on_disk(self.host, LAYOUT):
                self.processes.pop(member.number, None)

    def _reads(self, want: Wanted) -> None:
        self.known = {replica.number for replica in want.target.replicas}
        self.out &= self.known
        self.read = rendered(want.target, LAYOUT)[config_file(LAYOUT)].text

    def apply(self, change: Change, want: Wanted) -> None:
        """What it comes to: systemd and HAProxy do what they are told."""
        if isinstance(change, Drain):
            self.out.add(change.member.number)
        elif isinstance(change, Undrain):
            assert change.member.number in self.processes, "who is asked again serves"
            self.out.discard(change.member.number)
        elif isinstance(change, ReloadGateway):
            self._reads(want)
        elif isinstance(change, Renew | Restart | Handover):
            self._anew(change, want)
        elif isinstance(change, Remove):
            self.host.remove(change.path)
        elif isinstance(change, Run) and change.argv[1] == "stop":
            number = LAYOUT.number_of(change.argv[2]) or 0
            assert number not in self.known or number in self.out, "who is stopped is asked no more"
            self.processes.pop(number, None)

    def _anew(self, change: Renew | Restart | Handover, want: Wanted) -> None:
        how = change.how if isinstance(change, Renew) else change
        number = LAYOUT.number_of(how.unit) or 0
        if number in self.processes and number in self.known and isinstance(how, Restart):
            assert number in self.out, "who is restarted is asked no more"
        for each in (number, *(LAYOUT.number_of(unit) or 0 for unit in getattr(how, "along", ()))):
            self._starts(each, want)

    def asked_are_up(self) -> bool:
        return self.known <= self.processes.keys() and not self.out

    def changes(self, want: Wanted) -> list[Change]:
        """What is started anew is proved to be what is wanted, at the place where that is."""
        changes = list(running.running(want, self.host))
        for change in changes:
            if isinstance(change, Renew):
                assert change.want == want
                assert change.member in units(LAYOUT, want.target)
                assert change.how.unit == change.member.name
        return changes

    def plan(self, want: Wanted) -> list[str]:
        return [said(change) for change in self.changes(want)]


def said(change: Change) -> str:
    """A word and a number for each change; `!` for one that leaves the other units alone."""
    if isinstance(change, Renew):
        how = "hand over" if isinstance(change.how, Handover) else f"renew{'!' * change.how.alone}"
        return f"{how} {change.member.number}"
    if isinstance(change, Drain | Undrain):
        return f"{type(change).__name__.lower()} {change.member.number}"
    if isinstance(change, Restart):
        return f"restart {LAYOUT.number_of(change.unit)} {','.join(change.along)}".strip()
    if isinstance(change, Run):
        return " ".join(change.argv[1:])
    if isinstance(change, Remove):
        return f"remove {change.path.name}"
    return {TakeKeys: "keys", ReloadGateway: "reload", Handover: "handover"}[type(change)]


RETIRE = ["stop qwen3vl@{0}.service", "remove qwen3vl@{0}.service"]


def retired(*numbers: int) -> list[str]:
    return [line.format(number) for number in numbers for line in RETIRE] + ["daemon-reload"]


TWO, THREE = replicated((), ()), replicated((), (), ())
ROLLED = ["drain 1", "renew 1", "undrain 1", "drain 2", "renew 2", "undrain 2"]


def changed(want: Wanted, **settings: Any) -> Wanted:
    made = dataclasses.replace(want.target.settings, **settings)
    return dataclasses.replace(want, target=dataclasses.replace(want.target, settings=made))


def test_what_does_not_run_is_started_all_at_once(world: World) -> None:
    world.lies(TWO)
    assert world.plan(TWO) == ["restart 0 qwen3vl@1.service,qwen3vl@2.service"]


def test_what_is_as_it_should_be_is_left_alone(world: World) -> None:
    world.lies(TWO)
    world.runs(TWO, 0, 1, 2)
    assert world.plan(TWO) == []


@pytest.mark.parametrize(("unit", "planned"), [("qwen3vl.service", ["daemon-reload"]), ("other.service", [])])
def test_systemd_reads_a_unit_that_it_has_not_read(
    world: World, monkeypatch: pytest.MonkeyPatch, unit: str, planned: list[str]
) -> None:
    """Though it lies there as it should: of a change that was cut off before it said so."""

    def shown(_: Host, asked: str, *names: str) -> dict[str, str]:
        return {name: {"NeedDaemonReload": "yes" if asked == unit else "no"}[name] for name in names}

    monkeypatch.setattr(running, "unit_properties", shown)
    world.lies(BARE)
    world.runs(BARE, 0)
    assert world.plan(BARE) == planned


def test_one_member_after_the_other_and_only_those_that_differ(world: World) -> None:
    world.lies(TWO)
    world.runs(TWO, 0, 1, 2)
    longer = changed(TWO, max_model_len=4096)
    assert world.plan(longer) == ROLLED
    world.lies(longer)
    world.runs(longer, 1)
    assert world.plan(longer) == ROLLED[3:]
    world.out = {1}
    assert world.plan(longer) == ["undrain 1", *ROLLED[3:]], "what a cut left out of the balance comes back"


def test_a_member_that_does_not_run_has_nothing_to_finish(world: World) -> None:
    world.lies(TWO)
    world.runs(TWO, 0, 1)
    assert world.plan(TWO) == ["drain 2", "renew 2", "undrain 2"], "the gateway may not have noticed yet"
    world.known = {1}
    assert world.plan(TWO) == ["renew 2"]
    world.known = {1, 2}
    world.out = {1, 2}
    assert world.plan(TWO) == ["undrain 1", "renew 2", "undrain 2"], "as after a change that failed in it"
    world.runs(TWO, 2)
    assert world.plan(changed(TWO, max_model_len=4096))[:4] == ["renew 1", "undrain 1", "renew 2", "undrain 2"]


@pytest.mark.parametrize("fault", ["it ended", "it is starting", "it hangs", "it is left out", "nobody can be asked"])
def test_who_failed_is_back_before_another_makes_way(world: World, fault: str) -> None:
    """The way back of a change that failed in the third of three: the others serve what goes away."""
    longer = changed(THREE, max_model_len=4096)
    world.lies(THREE)
    world.known = {1, 2, 3}
    world.runs(THREE, 0)
    world.runs(longer, 1, 2)
    if fault != "it ended":
        world.runs(longer, 3, is_up=fault != "it is starting")
    if fault == "it hangs":
        world.down = {3}
    elif fault == "nobody can be asked":
        world.processes.pop(3)
        world.known = set()
    else:
        world.out = {3}
    planned = [line for line in world.plan(THREE) if line.startswith("renew")]
    assert planned == ["renew 3", "renew 1", "renew 2"]


def test_several_are_not_handed_over_and_one_alone_is(world: World) -> None:
    world.hands_over = True
    world.lies(TWO)
    world.runs(TWO, 0, 1, 2)
    assert world.plan(changed(TWO, max_model_len=4096)) == ROLLED
    alone = replicated(())
    world.processes.clear()
    world.host.remove(members(LAYOUT, TWO.target)[1].path)
    world.lies(alone)
    world.runs(alone, 0, 1)
    assert world.plan(changed(alone, max_model_len=4096)) == ["hand over 1"]
    world.runs(alone, 1, has_door=False)
    assert world.plan(changed(alone, max_model_len=4096)) == ROLLED[:3], "an older version's, which hands on no door"
    world.runs(alone, 1)
    world.hands_over = False
    assert world.plan(changed(alone, max_model_len=4096)) == ROLLED[:3]


def test_keys_are_handed_to_all_at_once(world: World) -> None:
    world.lies(TWO)
    world.runs(TWO, 0, 1, 2, keys=frozenset(list(world_keys(TWO))[1:]))
    assert world.plan(TWO) == ["keys"]


def world_keys(want: Wanted) -> list[tuple[str, str]]:
    return [(key.name, key.digest) for key in want.target.keys]


def test_the_gateway_comes_last_by_a_restart_or_a_reload(world: World) -> None:
    world.lies(TWO)
    world.runs(TWO, 0, 1, 2)
    moved = changed(TWO, port=8001, drain=60)
    assert world.plan(moved) == [*ROLLED, "renew! 0"]
    assert world.plan(changed(TWO, hold=60)) == ["reload"], "how long the gateway holds callers is in its configuration"
    assert world.plan(THREE) == ["renew 3", "reload"], "who is new is asked when it serves"
    world.lies(THREE)
    world.runs(THREE, 3)
    assert world.plan(THREE) == []
    world.is_current = False
    assert world.plan(THREE) == ["reload"], "it was written, and the change was cut off"


def test_who_is_too_many_is_asked_no_more_before_it_stops(world: World) -> None:
    world.lies(THREE)
    world.runs(THREE, 0, 1, 2, 3)
    assert world.plan(TWO) == ["reload", *retired(3)]
    world.lies(TWO)
    assert world.plan(TWO) == retired(3)


# From one to several, and back


def test_on_the_processor_all_but_the_last_start_beside_the_single_engine(world: World) -> None:
    world.lies(BARE)
    world.runs(BARE, 0)
    assert world.plan(THREE) == ["renew 1", "renew 2", "renew! 0", "renew 3"]
    world.lies(THREE)
    world.runs(THREE, 1)
    assert world.plan(THREE) == ["renew 2", "renew! 0", "renew 3"], "as after a cut"


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (("GPU-0",), ["renew 2", "renew 3", "renew! 0", "renew 1"]),
        (("GPU-2",), ["renew 1", "renew 2", "renew! 0", "renew 3"]),
        (("GPU-0", "GPU-1", "GPU-2"), ["renew! 0", "renew 1", "renew 2", "renew 3"]),
        (("GPU-9",), ["renew 1", "renew 2", "renew 3", "renew! 0"]),
        ((), ["renew! 0", "renew 1", "renew 2", "renew 3"]),  # it sees them all
    ],
)
def test_those_with_gpus_of_their_own_start_first(world: World, own: tuple[str, ...], expected: list[str]) -> None:
    world.lies(BARE)
    world.runs(BARE, 0, gpus=frozenset(own))
    assert world.plan(replicated(*GPUS, kind="cuda")) == expected


def test_replicas_that_see_every_gpu_wait_until_the_engine_is_gone(world: World) -> None:
    world.lies(BARE)
    world.runs(BARE, 0, gpus=frozenset({"GPU-0"}))
    assert world.plan(replicated((), (), kind="cuda")) == ["renew! 0", "renew 1", "renew 2"]


def test_back_to_one_the_engine_is_proved_before_the_others_go(world: World) -> None:
    world.lies(TWO)
    world.runs(TWO, 0, 1, 2)
    gone = [*retired(1, 2), "remove qwen3vl.haproxy.cfg"]
    assert world.plan(BARE) == ["renew! 0", *gone]
    world.processes = {}
    assert world.plan(BARE) == ["renew! 0", *gone], "as after a cut between the two"
    world.runs(BARE, 0)
    assert world.plan(BARE) == ["daemon-reload", *gone]
    world.lies(BARE)
    assert world.plan(BARE) == gone
    world.host.write(config_file(LAYOUT), "# an admin's own\n")
    assert world.plan(BARE) == retired(1, 2)
    world.host.write(members(LAYOUT, TWO.target)[0].drop_ins / "mine.conf", "")
    assert "remove qwen3vl@1.service.d" in world.plan(BARE)


def test_a_way_back_that_failed_half_way_leads_back_to_replicas(world: World) -> None:
    world.lies(TWO)
    world.runs(BARE, 0)
    assert world.plan(TWO) == ["renew 1", "renew! 0", "renew 2"]


# A change that ends anywhere


FORMS = {"one": BARE, "two": TWO, "three": THREE, "longer": changed(TWO, max_model_len=4096),
         "elsewhere": changed(TWO, port=8001), "other": changed(BARE, max_model_len=4096)}  # fmt: skip


@pytest.mark.parametrize(
    ("before", "wanted"),
    [
        ("one", "two"), ("one", "three"), ("other", "two"), ("two", "one"), ("two", "three"), ("three", "two"),
        ("two", "longer"), ("two", "elsewhere"), ("longer", "elsewhere"), ("longer", "three"), ("three", "other"),
    ],
)  # fmt: skip
def test_wherever_a_change_ends_the_next_one_leads_there_and_the_way_back_as_well(
    world: World, before: str, wanted: str
) -> None:
    """Whether it fails or is killed: files are written before, and then one unit after the other."""
    there, back = FORMS[wanted], FORMS[before]
    world.becomes(back)
    changes = world.changes(there)
    for number in range(len(changes) + 1):
        for goal in (there, back):
            world.becomes(back)
            world.lies(there)
            for change in changes[:number]:
                world.apply(change, there)
            world.lies(goal)
            for change in world.changes(goal):
                world.apply(change, goal)
            assert world.plan(goal) == [], (number, goal is there)
            assert world.asked_are_up(), (number, goal is there)


def test_a_unit_that_an_admin_made_is_none_of_ours(world: World) -> None:
    world.lies(TWO)
    world.runs(TWO, 0, 1, 2)
    owned = {str(member.path): ("1",) for member in members(LAYOUT, TWO.target)}
    save_state(world.host, LAYOUT, State("qwen3vl", owned=owned))
    world.host.write(LAYOUT.unit.with_name("qwen3vl@7.service"), "[Service]\n")
    assert world.plan(TWO) == []


# What the changes do


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """What the gateway is told."""
    told: list[tuple[object, ...]] = []
    monkeypatch.setattr(haproxy, "drain", lambda _, __, *words: told.append(words) or 0)
    monkeypatch.setattr(haproxy, "ready", lambda _, __, *words: not told.append(words))
    return told


FIRST = members(LAYOUT, TWO.target)[0]


def warnings() -> tuple[Report, list[str]]:
    class Warned(Report):
        def warn(self, text: str) -> None:
            found.append(text)

    found: list[str] = []
    return Warned(), found


def test_a_member_leaves_the_balance_and_comes_back(
    world: World, asked: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    report, warned = warnings()
    Drain(FIRST, 30).apply(world.host, report)
    Undrain(FIRST).apply(world.host, report)
    assert (asked, warned) == ([(1, 35), (1,)], [])
    monkeypatch.setattr(haproxy, "drain", lambda *_: 3)
    Drain(FIRST, 30).apply(world.host, report)
    assert warned == ["qwen3vl@1.service still answers 3 requests"]
    monkeypatch.setattr(haproxy, "ready", lambda *_: False)
    with pytest.raises(NotProved, match=r"qwen3vl@1\.service serves, but the gateway does not see it"):
        Undrain(FIRST).apply(world.host, report)


def test_a_gateway_that_is_silent_holds_no_change_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: object) -> int:
        raise NoGateway("the gateway cannot be asked")

    report, warned = warnings()
    monkeypatch.setattr(haproxy, "drain", silent)
    monkeypatch.setattr(haproxy, "ready", silent)
    Drain(FIRST, 30).apply(world.host, report)
    Undrain(FIRST).apply(world.host, report)
    assert warned == ["the gateway cannot be asked"] * 2


@pytest.fixture
def systemctl(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    told: list[tuple[str, ...]] = []
    monkeypatch.setattr(Host, "systemctl", lambda _, *words, check=True: told.append(words))
    return told


def test_each_is_proved_by_itself_and_the_gateway_is_only_waited_for(
    world: World, systemctl: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(prove, "serves", lambda _, member, *__: seen.append(f"proved {member.number}"))
    monkeypatch.setattr(prove, "wait_until_ready", lambda member, *_: seen.append(f"waited for {member.number}"))
    monkeypatch.setattr(prove, "invocation", lambda *_: "")
    monkeypatch.setattr(prove, "last_entry", lambda *_: "")
    gateway = handle(LAYOUT, TWO.target)
    Renew(TWO, FIRST, Restart(FIRST.name)).apply(world.host, Report())
    Renew(TWO, gateway, Restart(gateway.name, alone=True)).apply(world.host, Report())
    Renew(BARE, gateway, Restart(gateway.name, alone=True)).apply(world.host, Report())
    assert seen == ["proved 1", "waited for 0", "proved 0"]
    restarts = [words for words in systemctl if words[0] == "restart"]
    assert restarts[0] == ("restart", "--no-block", "qwen3vl@1.service")
    assert restarts[1] == ("restart", "--no-block", "--job-mode=ignore-dependencies", "qwen3vl.service")


def test_who_hands_over_takes_the_keys_of_now(
    world: World, systemctl: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    put: list[Layout] = []
    monkeypatch.setattr(prove, "serves", lambda *_: None)
    monkeypatch.setattr(prove, "last_entry", lambda *_: "x")
    monkeypatch.setattr(roll, "keys_of_now", lambda _, layout, __: put.append(layout))
    Renew(TWO, FIRST, Handover(FIRST.name)).apply(world.host, Report())
    assert put == [LAYOUT]


def test_a_gateway_is_reloaded_by_itself(world: World, systemctl: list[tuple[str, ...]]) -> None:
    ReloadGateway(LAYOUT).apply(world.host, Report())
    assert systemctl == [("daemon-reload",), ("reload", "--job-mode=ignore-dependencies", "qwen3vl.service")]


def test_a_handover_that_failed_on_the_way_back_becomes_a_restart() -> None:
    renewed = Renew(TWO, FIRST, Handover(FIRST.name))
    assert without_handover(renewed) == Renew(TWO, FIRST, Restart(FIRST.name))
    assert without_handover(Handover("x.service")) == Restart("x.service")
    assert without_handover(Restart("x.service")) is None
    assert without_handover(Drain(FIRST, 1)) is None


def test_a_plan_says_what_is_done_to_whom() -> None:
    changes = [Drain(FIRST, 30), Renew(TWO, FIRST, Restart(FIRST.name)), Undrain(FIRST), ReloadGateway(LAYOUT)]
    assert [change.to_json() for change in changes] == [
        {"kind": "drain", "unit": "qwen3vl@1.service", "seconds": 30},
        {"kind": "restart", "unit": "qwen3vl@1.service", "proved": True},
        {"kind": "undrain", "unit": "qwen3vl@1.service"},
        {"kind": "reload", "unit": "qwen3vl.service"},
    ]
    assert all("qwen3vl@1.service" in change.describe() for change in changes[:3])
