"""SIGKILL at every point of a deploy: the same command completes the work, and a reboot alone finds a sound host."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kit.boot.machine import Machine
from tests.kit.boot.snapshot import difference, snapshot
from tests.kit.life import SERVICE, ask, cli, is_gone, is_up, serves, standin, unit, until

UNIT = f"/etc/systemd/system/{SERVICE}.service"
# Made anew by every deploy, or by uv for itself.
DIFFERS = (UNIT, f"/var/lib/vllm-install/{SERVICE}", "/opt/vllm-install", "/etc/shadow", "/etc/gshadow")


@dataclass(frozen=True)
class Points:
    effects: list[int]
    folders: list[str]
    saves: int

    @property
    def changes(self) -> range:
        return range(1, len(self.effects) + 1)

    @property
    def telling(self) -> Iterator[int]:
        """The changes that are worth a visit: of many files for one folder three, for all are written alike."""
        for folder, group in itertools.groupby(self.changes, lambda number: self.folders[number - 1]):
            numbers = list(group)
            yield from sorted({numbers[0], numbers[len(numbers) // 2], numbers[-1]}) if folder else numbers

    def __iter__(self) -> Iterator[str]:
        yield "save:1"
        yield "begin:1"
        for number in self.telling:
            effects = self.effects[number - 1]
            # The last effect makes a change valid; a change of many has a middle that is worth a visit.
            yield from (f"effect:{number}:{k}" for k in sorted({effects // 2, effects} if effects > 3 else {effects}))
            yield f"done:{number}"
        yield from (f"save:{number}" for number in range(2, self.saves + 1))
        yield "show"


def cut(machine: Machine, point: str, *args: str) -> None:
    """Run a command that must die at this very point."""
    done = machine.run(sys.executable, "-m", "tests.kit.cut", "KILL", point, *args, check=False)
    assert done.returncode == -9, f"{point} was never reached\n{done.stdout}\n{done.stderr}"


def points_of(machine: Machine, *args: str) -> Points:
    """Run the command to its end, and learn where it can be cut."""
    said = machine.run(sys.executable, "-m", "tests.kit.cut", "KILL", "none", *args).stderr
    return Points(**json.loads(said.splitlines()[-1]))


def files(machine: Machine) -> dict[str, str]:
    """What one whole deploy leaves; the contents too, where they do not differ from run to run."""
    found = snapshot(machine.root, ignore=("opt/vllm-install/cache", f"var/cache/{SERVICE}"))
    return {path: "" if path.startswith(DIFFERS) else line for path, line in found.items()}


def test_the_first_deploy_killed_anywhere_is_completed_by_a_rerun(
    machine: Machine, standin_wheels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deploy = ("deploy", *standin(standin_wheels), "--json")
    bare = snapshot(machine.root)
    points = points_of(machine, *deploy)
    reference = files(machine)
    cli(machine, "uninstall", "--yes", "--purge")
    recovered = []
    for point in points:
        cut(machine, point, *deploy)
        again = cli(machine, *deploy)
        assert again.json["api_key"], f"{point}: nobody was ever told the key"
        serves(machine, again.key)
        assert cli(machine, *deploy).changes == [], point
        assert difference(reference, files(machine)) == [], point
        cli(machine, "uninstall", "--yes", "--purge")
        is_gone(machine, bare)
        recovered.append(point)
    assert len(recovered) >= 2 * len(list(points.telling)) >= 20
    with capsys.disabled():
        print(f"\nfirst deploy: {len(list(points))} kill points, {len(recovered)} recoveries")


def test_an_update_killed_anywhere_is_completed_by_a_rerun(
    machine: Machine, standin_wheels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = cli(machine, "deploy", *standin(standin_wheels)).key
    contexts = iter(range(1040, 32000, 16))
    points = points_of(machine, "deploy", "--context", str(next(contexts)))
    reference = files(machine)
    for point, context in zip(points, contexts, strict=False):
        cut(machine, point, "deploy", "--context", str(context))
        assert cli(machine, "deploy", "--context", str(context), "--json").json["api_key"] is None, point
        serves(machine, key)
        assert ask(machine, "GET", "/v1/models", key).json["data"][0]["max_model_len"] == context, point
        assert cli(machine, "deploy", "--json").changes == [], point
        assert files(machine).keys() == reference.keys(), point
    with capsys.disabled():
        print(f"\nupdate: {len(list(points))} kill points, as many recoveries")
    cli(machine, "uninstall", "--yes", "--purge")


def test_a_reboot_after_a_killed_update_serves_the_old_or_the_new(machine: Machine, standin_wheels: Path) -> None:
    key = cli(machine, "deploy", *standin(standin_wheels)).key
    served = {}
    # Before the settings are written, with them alone, while the unit is written, after it, and while it restarts.
    for context, point in enumerate(("begin:1", "done:1", "effect:2:1", "done:2", "effect:3:2", "done:3"), 2048):
        old = unit_context(machine)
        cut(machine, point, "deploy", "--context", str(context))
        machine.reboot()
        until("the service is up", lambda: is_up(machine), machine)
        serves(machine, key)
        served[point] = ask(machine, "GET", "/v1/models", key).json["data"][0]["max_model_len"]
        assert served[point] == unit_context(machine)
        assert served[point] in (old, context), point
        assert machine.run("systemctl", "is-system-running").stdout == "running\n"
        cli(machine, "deploy", "--context", str(context))
        assert unit_context(machine) == context
        assert cli(machine, "plan", "--json").changes == []
    assert served["done:2"] == 2051
    cli(machine, "uninstall", "--yes", "--purge")


def test_a_reboot_after_a_killed_first_deploy_leaves_no_broken_host(machine: Machine, standin_wheels: Path) -> None:
    deploy = ("deploy", *standin(standin_wheels), "--json")
    changes = cli(machine, *deploy).changes
    cli(machine, "uninstall", "--yes", "--purge")
    enabled = next(n for n, change in enumerate(changes, 1) if change["kind"] == "run" and "enable" in change["argv"])
    for point, starts in ((f"done:{enabled - 1}", False), (f"done:{enabled}", True)):
        cut(machine, point, *deploy)
        machine.reboot()
        if starts:
            until("the service is up", lambda: is_up(machine), machine)
        assert unit(machine, "ActiveState")["ActiveState"] == ("active" if starts else "inactive")
        assert machine.run("systemctl", "is-system-running").stdout == "running\n"
        serves(machine, cli(machine, *deploy).key)
        cli(machine, "uninstall", "--yes", "--purge")


def unit_context(machine: Machine) -> int:
    words = machine.at(UNIT).read_text().split()
    return int(words[words.index("--max-model-len") + 1])
