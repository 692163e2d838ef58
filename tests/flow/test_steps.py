"""Steps on a temporary root: they yield what is due and no more, refuse what is not ours, and leave nothing behind."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from installer.adoption import former
from installer.airgap.bundle_file import open_bundle
from installer.base.changes import Change, Handover, Remove, Restart, Run, Write
from installer.base.host import Host
from installer.base.layout import Layout
from installer.base.report import Report
from installer.flow import ownership, receipt, running, steps
from installer.flow.steps import STEPS, plan, removal
from installer.flow.wanted import Wanted
from installer.forms.podman import images
from installer.forms.venv.engines import MARKER, InstallEngine
from installer.forms.venv.toolkit import CompileKernels
from installer.model import builtin
from installer.spec.former import Former
from installer.spec.keys import Key, digest
from installer.spec.problem import Problem
from installer.spec.records import load_state, save_state
from installer.spec.settings import Settings
from installer.spec.settings_file import wanted as settings_text
from installer.spec.state import State
from installer.spec.target import Placed
from installer.spec.toolkit import Toolkit
from installer.spec.values import BUILTIN
from installer.units.graph import handle
from installer.units.keyring import TakeKeys, WriteUnit
from installer.units.render import process_digest, render, runtime_dir, shared_units, unit
from installer.units.systemd import MainProcess
from installer.weights.models import Download
from tests.airgap.test_bundle_file import write as write_bundle
from tests.kit.targets import KEYS, PROBE_KEY, boxed, replicated, wanted, with_settings

LAYOUT = Layout("qwen3vl")
USER = f"{LAYOUT.user}:x:990:990::/:/usr/sbin/nologin\n"
LINK = Path("/etc/systemd/system/multi-user.target.wants/qwen3vl.service")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A bare host with a few things of its own."""
    host = Host(tmp_path / "root")
    host.write(Path("/etc/passwd"), "root:x:0:0:root:/root:/bin/bash\n")
    host.write(Path("/etc/systemd/system/theirs.service"), "[Service]\n")
    host.write(Path("/etc/sysusers.d/theirs.conf"), "u theirs\n")
    host.make_dir(Path("/var/lib"))
    host.make_dir(Path("/var/cache"))
    host.make_dir(Path("/opt"))
    return host


def run_on_root(change: Change, host: Host) -> None:
    """What a change comes to on a temporary root, where no systemd runs and no engine or model can be had."""
    if isinstance(change, Write | Remove):
        change.apply(host, Report())
    elif isinstance(change, InstallEngine):
        host.write(change.path / MARKER, "")
        host.write(change.path / "bin/python", "", 0o755)
    elif isinstance(change, Download):
        host.write(change.model.path / "config.json", "{}")
    elif isinstance(change, builtin.MakeBuiltin):
        change.apply(host, Report())
    elif isinstance(change, Run) and change.argv[0] == "systemd-sysusers":
        host.write(Path("/etc/passwd"), (host.read(Path("/etc/passwd")) or "") + USER)
    elif isinstance(change, Run) and change.argv[0] == "userdel":
        host.write(Path("/etc/passwd"), (host.read(Path("/etc/passwd")) or "").replace(USER, ""))
    elif isinstance(change, Run) and change.argv[:2] in (("systemctl", "enable"), ("systemctl", "disable")):
        host.systemctl(change.argv[1], change.argv[-1])


def apply(changes: Iterable[Change], host: Host) -> None:
    for change in changes:
        run_on_root(change, host)


def recorded(want: Wanted, changes: list[Change], host: Host) -> State:
    """Apply as deploy does: claim, change, remember."""
    before = load_state(host, want.layout) or State(want.layout.service)
    state = receipt.claim(before, want, changes, host, "deploy", Report(), key_shown=True)
    apply(changes, host)
    receipt.remember(state, want.target, host, "proved", Report())
    remembered = load_state(host, want.layout)
    assert remembered is not None
    return remembered


def tree(host: Host) -> dict[str, str]:
    entries = sorted(path for path in host.root.rglob("*") if host.root / "run" not in (path, *path.parents))
    return {str(p.relative_to(host.root)): p.read_text(errors="replace") if p.is_file() else "/" for p in entries}


def shared_by(want: Wanted) -> list[Path]:
    return [path for path in render(want.target, want.layout) if path in shared_units()]


def due(want: Wanted, host: Host, *expected: Callable[[Wanted, Host], Iterator[Change]]) -> list[Change]:
    """The plan, of which only the expected steps have a part."""
    for step in STEPS:
        assert bool(list(step(want, host))) == (step in expected), step.__name__
    return plan(want, host)


@pytest.fixture
def want() -> Wanted:
    return wanted(dataclasses.replace(Settings(), model=BUILTIN), kind="cpu")


# What is due


def test_a_bare_host_needs_everything_in_this_order(host: Host, want: Wanted) -> None:
    files = {path: Write(path, file.text, file.mode) for path, file in render(want.target, LAYOUT).items()}
    account, unit = files.pop(LAYOUT.sysusers), files.pop(LAYOUT.unit)
    unit = WriteUnit(unit.path, unit.text, unit.mode, layout=LAYOUT)
    assert list(steps.account(want, host)) == [
        account,
        Run(("systemd-sysusers", str(LAYOUT.sysusers)), "create the user vllm-qwen3vl"),
    ]
    text = settings_text(None, want.target.settings, LAYOUT.settings_file)
    assert list(steps.settings_file(want, host)) == [Write(LAYOUT.settings_file, text)]
    assert list(steps.probe_key(want, host)) == [Write(LAYOUT.probe_key, PROBE_KEY + "\n", 0o600, secret=True)]
    assert list(steps.unit_files(want, host)) == [*files.values(), unit]
    assert list(steps.enabled(want, host)) == [
        Run(("systemctl", "enable", "qwen3vl.service"), "start the service at every boot")
    ]
    assert list(steps.running(want, host)) == [Restart("qwen3vl.service")]
    assert list(steps.engine(want, host)) == [InstallEngine(want.target.engine, want.target.settings, LAYOUT)]
    assert plan(want, host) == [change for step in STEPS for change in step(want, host)]
    assert len(plan(want, host)) == len({change.describe() for change in plan(want, host)})


def test_planning_changes_nothing(host: Host, want: Wanted) -> None:
    before = tree(host)
    plan(want, host)
    assert tree(host) == before


def test_what_was_applied_is_not_due_again(host: Host, want: Wanted) -> None:
    apply(plan(want, host), host)
    due(want, host, steps.running)  # no process can run on a temporary root


def test_every_step_sees_to_what_is_its_own(host: Host, want: Wanted) -> None:
    apply(plan(want, host), host)
    engine = LAYOUT.engines / want.target.engine.id
    for path, step in (
        (engine / "bin/python", steps.engine),
        (engine / MARKER, steps.engine),
        (want.target.model.path, steps.weights),
        (LAYOUT.sysusers, steps.account),
        (LAYOUT.probe_key, steps.probe_key),
        (LAYOUT.unit, steps.unit_files),
        (LINK, steps.enabled),
        *((path, steps.unit_files) for path in shared_by(want)),
    ):
        host.remove(path)
        apply(due(want, host, step, steps.running), host)
    due(want, host, steps.running)


def test_a_mode_that_somebody_loosened_is_put_right(host: Host, want: Wanted) -> None:
    apply(plan(want, host), host)
    host.at(LAYOUT.probe_key).chmod(0o644)
    host.at(LAYOUT.unit).chmod(0o666)
    changes = due(want, host, steps.probe_key, steps.unit_files, steps.running)
    assert [change.path for change in changes if isinstance(change, Write)] == [LAYOUT.probe_key, LAYOUT.unit]


def test_the_admin_may_keep_the_settings_file_to_himself(host: Host, want: Wanted) -> None:
    apply(plan(want, host), host)
    host.at(LAYOUT.settings_file).chmod(0o600)
    due(want, host, steps.running)
    apply(plan(with_settings(want, port=8001), host), host)
    assert host.mode(LAYOUT.settings_file) == 0o600


def test_a_changed_setting_writes_the_settings_file_and_the_unit_alone(host: Host, want: Wanted) -> None:
    apply(plan(want, host), host)
    changed = with_settings(want, max_model_len=2048)
    written = [change.path for change in due(changed, host, *CHANGED) if isinstance(change, Write)]
    assert written == [LAYOUT.settings_file, LAYOUT.unit]


CHANGED = (steps.settings_file, steps.unit_files, steps.running)


def test_a_unit_with_a_verbatim_key_shows_no_text(host: Host, want: Wanted) -> None:
    plain = Key("default", digest("sk-plain"), plain="sk-plain")
    shown = dataclasses.replace(want, target=dataclasses.replace(want.target, keys=(plain, KEYS[1])))
    for change in plan(shown, host):
        assert "sk-plain" not in str(change.to_json())


def test_plan_and_data_hold_no_probe_key(host: Host, want: Wanted) -> None:
    assert not any(PROBE_KEY in f"{change.describe()}{change.to_json()}" for change in plan(want, host))


FORMER = Former("qwen3vl.service", enabled=True, active=True, files=((LAYOUT.unit, 0o644),))


def test_a_service_that_takes_a_units_place_is_enabled_and_started_anew(host: Host, want: Wanted) -> None:
    """The link that is there is the old unit's, and goes with it."""
    apply(plan(want, host), host)
    instead = dataclasses.replace(want, former=FORMER, environment=(("A", "1"),))
    assert list(steps.enabled(want, host)) == []
    assert [change.describe() for change in steps.enabled(instead, host)] == [
        "start the service at every boot (systemctl enable qwen3vl.service)"
    ]
    assert steps.adopted in STEPS
    assert STEPS.index(steps.adopted) < STEPS.index(steps.unit_files)
    stop, drop_in = steps.adopted(instead, host)
    assert stop == Run(
        ("systemctl", "disable", "--now", "qwen3vl.service"), "stop qwen3vl.service, whose place the service takes"
    )
    assert isinstance(drop_in, Write)
    assert drop_in.path == handle(LAYOUT).drop_ins / "adopted.conf"
    several = dataclasses.replace(instead, target=replicated((), ()).target)
    assert [change.path for change in steps.adopted(several, host) if isinstance(change, Write)] == [
        Path("/etc/systemd/system/qwen3vl@.service.d/adopted.conf")
    ]
    assert list(steps.adopted(want, host)) == []


@pytest.mark.parametrize(
    ("process", "changes"),
    [
        (None, [Restart]),
        ({"digest": "of another unit"}, [Restart]),
        ({"digest": "of another unit", "hands_over": True}, [Handover]),
        ({"digest": "of another unit", "hands_over": True, "hold": 0}, [Restart]),
        ({"digest": "of another unit", "hands_over": True, "image": "sha256:1"}, [Restart]),
        ({"digest": "of another unit", "hands_over": True, "is_up": False}, [Restart]),
        ({"digest": "of another unit", "hands_over": True, "former": FORMER}, [Restart]),
        ({"digest": "of another unit", "hands_over": True, "keys": frozenset()}, [Restart]),
        ({"digest": "of another unit", "hands_over": True, "keys": frozenset([("probe", KEYS[1].digest)])}, [Handover]),
        ({"hands_over": True}, []),
        ({"hands_over": True, "keys": frozenset()}, [Restart]),
        ({}, []),
        ({"former": FORMER}, [Restart]),
        ({"keys": frozenset()}, [Restart]),
        ({"keys": frozenset([("default", KEYS[0].digest)])}, [Restart]),
        ({"keys": frozenset([("probe", KEYS[1].digest)])}, [TakeKeys]),
        ({"keys": frozenset([("probe", KEYS[1].digest)]), "is_up": False}, [Restart]),
    ],
)
def test_a_restart_is_due_only_where_nothing_less_does(
    process: dict[str, object] | None, changes: list[type], host: Host, want: Wanted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watcher asks with the probe key that it was started with, so one that is not in force is worth a restart."""
    keys = want.target.keys
    process = process and dict(process)
    want = with_settings(want, hold=process.pop("hold", 120) if process else 120)
    apply(plan(want, host), host)
    found = {
        "pid": 1, "digest": process_digest(want.target, LAYOUT), "is_up": True,
        "keys": frozenset((key.name, key.digest) for key in keys), **(process or {}),
    }  # fmt: skip
    engine = dataclasses.replace(want.target.engine, image=found.pop("image", ""))
    target = dataclasses.replace(want.target, engine=engine)
    want = dataclasses.replace(want, target=target, former=found.pop("former", None))
    hands_over = found.pop("hands_over", False)
    monkeypatch.setattr(running, "hands_over", lambda *_: hands_over)
    monkeypatch.setattr(running, "running_process", lambda *_: None if process is None else MainProcess(**found))
    assert [type(change) for change in steps.running(want, host)] == changes


@pytest.mark.parametrize(("edited", "loaded", "is_due"), [(False, "no", 0), (True, "no", 1), (False, "yes", 1)])
def test_systemd_reads_a_unit_that_is_put_back_though_nothing_is_restarted(
    host: Host, want: Wanted, monkeypatch: pytest.MonkeyPatch, edited: bool, loaded: str, is_due: int
) -> None:
    """Else the next start would be one of the unit that was tried: the process never was started from it."""
    apply(plan(want, host), host)
    held = frozenset((key.name, key.digest) for key in want.target.keys)
    process = MainProcess(1, process_digest(want.target, LAYOUT), held, is_up=True)
    monkeypatch.setattr(running, "running_process", lambda *_: process)
    monkeypatch.setattr(running, "unit_properties", lambda *_: {"NeedDaemonReload": loaded})
    if edited:
        host.write(LAYOUT.unit, f"{host.read(LAYOUT.unit)}# tried\n")
    assert (
        list(steps.running(want, host)) == [Run(("systemctl", "daemon-reload"), "make systemd read the unit")] * is_due
    )


def test_only_a_change_of_more_than_keys_is_a_generation(host: Host, want: Wanted) -> None:
    """What rollback returns to: not the same service with other keys."""
    recorded(want, plan(want, host), host)
    other_keys = dataclasses.replace(want, target=dataclasses.replace(want.target, keys=KEYS[1:]))
    assert recorded(other_keys, plan(other_keys, host), host).previous is None
    changed = with_settings(want, port=8001)
    state = recorded(changed, plan(changed, host), host)
    assert state.previous is not None
    assert state.previous.settings.port == 8000
    again = recorded(changed, plan(changed, host), host)
    assert again.previous == state.previous


# What is not ours


def problems(
    want: Wanted, host: Host, *, discard_edits: bool = False, replaced: frozenset[Path] = frozenset()
) -> list[Problem]:
    state = load_state(host, want.layout) or State(want.layout.service)
    found = ownership.objections(
        plan(want, host), host, want.layout, state, discard_edits=discard_edits, replaced=replaced
    )
    return list(found)


def test_on_a_bare_host_nothing_is_in_the_way(host: Host, want: Wanted) -> None:
    assert problems(want, host) == []


@pytest.mark.parametrize(
    "path",
    [
        LAYOUT.unit,
        LAYOUT.sysusers,
        LAYOUT.probe_key,
        LAYOUT.unit.parent / "vllm.slice",
        LAYOUT.cache_dir,
        LAYOUT.run_dir,
    ],
)
def test_a_stranger_is_never_replaced(path: Path, host: Host, want: Wanted) -> None:
    host.write(path, "theirs\n")
    for discard_edits in (False, True):
        (found,) = problems(want, host, discard_edits=discard_edits)
        assert found.what == f"{path} exists already"
        assert f"mv {path} {path}.before" in found.remedy


def test_what_an_adoption_takes_the_place_of_is_replaced_and_nothing_else(host: Host, want: Wanted) -> None:
    host.write(LAYOUT.unit, "theirs\n")
    host.write(LAYOUT.sysusers, "theirs\n")
    (found,) = problems(want, host, replaced=frozenset([LAYOUT.unit]))
    assert found.what == f"{LAYOUT.sysusers} exists already"


def test_a_unit_of_ours_that_is_masked_is_told_apart(host: Host, want: Wanted) -> None:
    recorded(want, plan(want, host), host)
    host.remove(LAYOUT.unit)
    host.at(LAYOUT.unit).symlink_to("/dev/null")
    for discard_edits in (False, True):
        (found,) = problems(want, host, discard_edits=discard_edits)
        assert found.what == f"{LAYOUT.unit} is masked"
        assert "systemctl unmask qwen3vl" in found.remedy


def test_a_file_of_ours_that_somebody_emptied_was_edited(host: Host, want: Wanted) -> None:
    recorded(want, plan(want, host), host)
    host.write(LAYOUT.sysusers, "")
    assert [problem.what for problem in problems(want, host)] == [f"{LAYOUT.sysusers} was edited by hand"]


@pytest.mark.parametrize("directory", [LAYOUT.cache_dir, LAYOUT.run_dir])
def test_the_directories_of_a_service_that_is_ours_are_in_nobodys_way(
    directory: Path, host: Host, want: Wanted
) -> None:
    recorded(want, plan(want, host), host)
    host.make_dir(directory)
    assert problems(want, host) == []


def test_the_cache_of_an_ejected_service_is_the_one_it_is_adopted_with(host: Host, want: Wanted) -> None:
    host.make_dir(LAYOUT.cache_dir)
    for ejected, expected in ((True, 0), (False, 1)):
        former = Former("qwen3vl.service", enabled=True, active=True, files=(), ejected=ejected)
        found = ownership.objections(
            plan(want, host), host, LAYOUT, State("qwen3vl", former=former), discard_edits=False
        )
        assert len(list(found)) == expected


def test_a_masked_unit_counts_as_a_strangers(host: Host, want: Wanted) -> None:
    host.at(LAYOUT.unit).symlink_to("/dev/null")
    assert [problem.what for problem in problems(want, host)] == [f"{LAYOUT.unit} exists already"]


@pytest.mark.parametrize("port", [8000, 8001])
def test_a_settings_file_written_before_the_first_deploy_is_taken_and_stays(
    port: int, host: Host, want: Wanted
) -> None:
    text = "# mine\nMODEL_NAME=builtin:tiny\nPORT=8000\n"
    host.write(LAYOUT.settings_file, text)
    want = with_settings(want, port=port)
    assert problems(want, host) == []
    state = recorded(want, plan(want, host), host)
    state = recorded(want, plan(want, host), host)
    apply(removal(LAYOUT, state, host, weights=True, engine=True), host)
    assert host.read(LAYOUT.settings_file) == text.replace("8000", str(port))


@pytest.mark.parametrize("path", [LAYOUT.unit, LAYOUT.sysusers, LAYOUT.unit.parent / "vllm.slice"])
def test_an_edit_by_hand_is_refused_with_a_diff_and_discarded_on_request(path: Path, host: Host, want: Wanted) -> None:
    recorded(want, plan(want, host), host)
    ours = host.read(path) or ""
    host.write(path, ours + "# by hand\n")
    (found,) = problems(want, host)
    assert found.what == f"{path} was edited by hand"
    assert "+# by hand" in found.why
    assert "--discard-edits" in found.remedy
    assert problems(want, host, discard_edits=True) == []
    apply(plan(want, host), host)
    assert host.read(path) == ours


def test_keys_in_the_unit_may_be_edited_by_hand(host: Host, want: Wanted) -> None:
    recorded(want, plan(want, host), host)
    text = (host.read(LAYOUT.unit) or "").replace(f"default=sha256:{KEYS[0].digest}", '"my=sk-100%% mine"')
    host.write(LAYOUT.unit, text)
    assert problems(want, host) == []


def test_an_older_text_of_ours_is_ours_while_a_change_is_under_way(host: Host, want: Wanted) -> None:
    state = recorded(want, plan(want, host), host)
    changed = with_settings(want, port=8001)
    receipt.claim(state, changed, plan(changed, host), host, "deploy", Report(), key_shown=True)
    assert problems(changed, host) == [], "cut off before the unit was written"
    apply(plan(changed, host), host)
    assert problems(want, host) == [], "cut off after it was written"


def test_a_drop_in_is_neither_seen_nor_touched(host: Host, want: Wanted) -> None:
    drop_in = Path("/etc/systemd/system/qwen3vl.service.d/override.conf")
    host.write(drop_in, "[Service]\nNice=5\n")
    state = recorded(want, plan(want, host), host)
    assert problems(want, host) == []
    apply(removal(LAYOUT, state, host, weights=True, engine=True), host)
    assert host.read(drop_in) == "[Service]\nNice=5\n"


# Taking everything away


@pytest.fixture(params=["with theirs", "empty", "missing"])
def accounts(host: Host, request: pytest.FixtureRequest) -> None:
    """The directory of the entries of users, which not every system has."""
    if request.param != "with theirs":
        host.remove(LAYOUT.sysusers.parent)
    if request.param == "empty":
        host.make_dir(LAYOUT.sysusers.parent)


@pytest.mark.usefixtures("accounts")
def test_removal_leaves_the_host_as_it_was(host: Host, want: Wanted) -> None:
    before = tree(host)
    state = recorded(want, plan(want, host), host)
    host.write(LAYOUT.cache_dir / "vllm/compiled", "")
    host.write(LAYOUT.wheel_cache / "wheel", "")
    changes = list(removal(LAYOUT, state, host, weights=True, engine=True))
    apply(changes, host)
    assert tree(host) == before
    apply(changes, host)
    assert tree(host) == before


def test_removal_stops_the_service_before_its_files_go(host: Host, want: Wanted) -> None:
    state = recorded(want, plan(want, host), host)
    changes = list(removal(LAYOUT, state, host, weights=True, engine=True))
    assert changes[0] == Run(("systemctl", "disable", "--now", "qwen3vl.service"), "stop the service")
    runs = [change.argv for change in changes if isinstance(change, Run)]
    assert ("userdel", "vllm-qwen3vl") in runs
    assert not any(argv == ("systemctl", "reset-failed") for argv in runs), "that would clear every unit on the host"


def test_a_unit_that_is_shared_is_stopped_when_the_last_service_goes(host: Host) -> None:
    """Its file would be gone, and systemd would show it as active for as long as the host is up."""
    want = wanted()
    state = recorded(want, [Write(path, text) for path, text in shared_units().items()], host)
    changes = list(removal(LAYOUT, state, host, weights=True, engine=True))
    stopped = [change.argv for change in changes if isinstance(change, Run) and "stop" in change.argv]
    assert stopped == [("systemctl", "stop", "vllm-nvidia-nodes.service")], "the slice goes by itself, when it is empty"


def test_weights_and_engine_stay_unless_asked_for(host: Host, want: Wanted) -> None:
    state = recorded(want, plan(want, host), host)
    apply(removal(LAYOUT, state, host, weights=False, engine=False), host)
    assert host.exists(want.target.model.path)
    assert host.exists(LAYOUT.engines / want.target.engine.id / MARKER)
    assert load_state(host, LAYOUT) is None


def test_an_account_that_was_there_before_stays(host: Host, want: Wanted) -> None:
    host.write(Path("/etc/passwd"), USER)
    state = recorded(want, plan(want, host), host)
    apply(removal(LAYOUT, state, host, weights=True, engine=True), host)
    assert host.read(Path("/etc/passwd")) == USER


def test_an_account_that_we_made_is_ours_after_the_next_change_too(host: Host, want: Wanted) -> None:
    recorded(want, plan(want, host), host)
    other = with_settings(want, port=8001)
    state = recorded(other, plan(other, host), host)
    assert ("userdel", LAYOUT.user) in removed(host, state)[1]


@pytest.mark.usefixtures("accounts")
def test_two_services_share_what_they_share_until_the_last_goes(host: Host, want: Wanted) -> None:
    before = tree(host)
    first = recorded(want, plan(want, host), host)
    sibling = wanted(dataclasses.replace(want.target.settings, service="other", port=8001), kind="cpu")
    second = plan(sibling, host)
    assert problems(sibling, host) == []
    shared = set(shared_units())
    assert not shared & {change.path for change in second if isinstance(change, Write)}
    assert not any(isinstance(change, InstallEngine) for change in second)
    other = recorded(sibling, second, host)
    host.write(Path("/etc/passwd"), (host.read(Path("/etc/passwd")) or "").replace(USER * 2, USER))
    apply(removal(LAYOUT, first, host, weights=True, engine=True), host)
    due(sibling, host, steps.account, steps.running)  # the stand-in for sysusers knows one account only
    apply(removal(sibling.layout, other, host, weights=True, engine=True), host)
    assert tree(host) == before


def test_after_the_first_service_goes_the_second_can_still_change_what_they_shared(host: Host, want: Wanted) -> None:
    first = recorded(want, plan(want, host), host)
    sibling = wanted(dataclasses.replace(want.target.settings, service="other", port=8001), kind="cpu")
    recorded(sibling, plan(sibling, host), host)
    apply(removal(LAYOUT, first, host, weights=True, engine=True), host)
    for path in shared_by(sibling):
        host.write(path, "# as an older version of ours wrote it\n")
    assert [problem.what for problem in problems(sibling, host)] == [
        f"{path} was edited by hand" for path in shared_by(sibling)
    ]


def removed(host: Host, state: State) -> tuple[list[Path], list[tuple[str, ...]]]:
    """The paths that a removal takes away, and the commands it runs."""
    changes = list(removal(LAYOUT, state, host, weights=True, engine=True))
    return (
        [change.path for change in changes if isinstance(change, Remove)],
        [change.argv for change in changes if isinstance(change, Run)],
    )


def test_a_unit_that_is_what_it_was_before_an_adoption_is_left_alone(host: Host, want: Wanted) -> None:
    """An adoption that was cut off before it began, or whose undoing was: the old unit runs."""
    host.write(LAYOUT.unit, "[Service]\nExecStart=/srv/old\n")
    former.keep(FORMER, host, LAYOUT)
    state = State("qwen3vl", {str(LAYOUT.unit): ("1",)}, former=FORMER)
    paths, runs = removed(host, state)
    assert LAYOUT.unit not in paths
    assert ("systemctl", "disable", "--now", "qwen3vl.service") not in runs
    host.write(LAYOUT.unit, "[Service]\nExecStart=/opt/ours\n")
    paths, runs = removed(host, state)
    assert LAYOUT.unit in paths
    assert ("systemctl", "disable", "--now", "qwen3vl.service") in runs


@pytest.mark.parametrize("proved", [True, False])
def test_the_old_service_starts_again_only_where_ours_never_served(host: Host, want: Wanted, proved: bool) -> None:
    ejected = dataclasses.replace(FORMER, ejected=True)
    host.make_dir(LAYOUT.cache_dir)
    paths, runs = removed(host, State("qwen3vl", former=ejected, proved=want.target if proved else None))
    assert (("systemctl", "start", "qwen3vl.service") in runs) != proved
    assert (LAYOUT.cache_dir in paths) == proved, "the old one, which was ours once, has its cache there"


def test_what_an_ejected_service_runs_on_outlives_the_last_of_ours(host: Host, want: Wanted) -> None:
    state = recorded(want, plan(want, host), host)
    engine = LAYOUT.engines / want.target.engine.id
    host.make_dir(LAYOUT.wheel_cache)
    text = host.read(LAYOUT.unit) or ""
    shared = {*shared_by(want), engine, LAYOUT.wheel_cache, LAYOUT.builtin_models}
    assert shared <= {*removed(host, state)[0]}
    planned = list(removal(LAYOUT, state, host, weights=True, engine=True))
    host.write(LAYOUT.unit.with_name("let-go.service"), text)
    assert not shared & {*removed(host, state)[0]}
    apply([change for change in planned if isinstance(change, steps.RemoveUnused)], host)
    assert host.exists(engine), "it was let go after this was planned"
    assert all(host.exists(path) for path in shared_by(want))


@pytest.mark.parametrize("pending", [None, "deploy"])
def test_the_runtime_that_a_cut_off_change_works_towards_is_in_use(
    host: Host, want: Wanted, pending: str | None
) -> None:
    host.make_dir(runtime_dir(LAYOUT))
    save_state(host, LAYOUT, State("qwen3vl", pending=pending))
    unused = [change.path for change in steps.unused_programs(LAYOUT, [LAYOUT], host)]
    assert unused == ([] if pending else [runtime_dir(LAYOUT)])


def test_an_image_is_in_use_for_as_long_as_a_unit_starts_it(host: Host, want: Wanted) -> None:
    """Also one that nobody has a record of any more: it was let go."""
    path = LAYOUT.engines / "1f1f1f1f1f1f1f1f"
    host.write(path / ".complete", "{}")
    assert [change.path for change in steps.unused_programs(LAYOUT, [], host)] == [path]
    made = boxed("cpu", want.target.settings)
    host.write(LAYOUT.unit.with_name("let-go.service"), unit(made, LAYOUT))
    assert path not in [change.path for change in steps.unused_programs(LAYOUT, [], host)]


def test_the_image_that_was_asked_for_is_brought_unless_it_is_there(host: Host, want: Wanted) -> None:
    host.write(Path("/srv/vllm.tar"), "x" * 10)
    settings = dataclasses.replace(want.target.settings, image="/srv/vllm.tar")
    boxed_want = dataclasses.replace(want, target=boxed("cpu", settings))
    (change,) = steps.engine(boxed_want, host)
    assert isinstance(change, images.BringImage)
    assert (change.reference, change.bytes_needed, change.layout) == ("/srv/vllm.tar", 20, LAYOUT)
    assert change.engine == boxed_want.target.engine


def test_what_a_bundle_carries_comes_from_there(host: Host, want: Wanted, tmp_path: Path) -> None:
    """The index and the registry may be out of reach."""
    bundle = open_bundle(write_bundle(tmp_path / "bundle"))
    carried = dataclasses.replace(want, bundle=bundle)
    (change,) = steps.engine(carried, host)
    assert isinstance(change, InstallEngine)
    assert change.bundle == bundle
    (change,) = steps.engine(dataclasses.replace(carried, target=boxed("cpu", want.target.settings)), host)
    assert isinstance(change, images.BringImage)
    assert change.bundle == bundle


def test_kernels_are_compiled_as_the_replicas_will_run_them(host: Host) -> None:
    """The unit that people type is the gateway's: it shows no GPU to anybody."""
    gpus = [(Placed(f"GPU-{number}", "H200", f"/dev/nvidia{number}"),) for number in (1, 2)]
    want = replicated(*gpus, kind="cuda")
    made = dataclasses.replace(want.target, toolkit=Toolkit("wheels", "/cuda", capabilities="9.0"))
    want = dataclasses.replace(want, target=made)
    (change,) = steps.kernels(want, host)
    assert isinstance(change, CompileKernels)
    assert dict(change.variables).items() >= {"CUDA_HOME": "/cuda", "CUDA_VISIBLE_DEVICES": "GPU-1"}.items()
    assert any("/dev/nvidia1" in line for line in change.sandbox)
    host.write(LAYOUT.kernels_stamp, change.stamp)
    assert list(steps.kernels(want, host)) == []
    assert list(steps.kernels(wanted(), host)) == [], "without a compiler"
