"""Bundles in booted machines: made where there is a network, deployed where there is none."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from installer.model import builtin
from tests.booted.test_kill import cut, files, points_of
from tests.kit import adapter
from tests.kit.boot.machine import Machine
from tests.kit.boot.snapshot import difference
from tests.kit.hub import Hub
from tests.kit.life import Outcome, ask, cli, is_up, main_pid, until

NAME, ADAPTER = "Org/Tiny", "Org/Adapter"
FILE = "/srv/tiny.bundle"

# Runs a command with a standard output that nobody reads any more.
INTO_NOTHING = """
import os, subprocess, sys
reader, writer = os.pipe()
os.close(reader)
sys.exit(subprocess.run(sys.argv[1:], stdout=writer).returncode)
"""


def standin(wheels: Path) -> tuple[str, ...]:
    """The options of a bundle of the stand-in engine; offline, or the index's real one would be preferred."""
    return ("--engine", "cpu", "--find-links", str(wheels), "--offline", "--no-tool")


@pytest.fixture(scope="module")
def made(standin_wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the stand-in engine with a model and an adapter from a hub."""
    with Hub() as hub, Machine(network=True) as machine:
        hub.add(NAME, {**builtin.files(), "README.md": b"# Tiny"})
        hub.add(ADAPTER, {**adapter.files(), "README.md": b"# Small"})
        machine.at("/srv").mkdir(exist_ok=True)
        for name in (NAME, ADAPTER):
            cli(machine, "models", "pull", name, "--hf-endpoint", hub.url)
        lora = ("--lora", f"sql={ADAPTER}")
        done = cli(machine, "bundle", "create", FILE, "--model", NAME, *lora, *standin(standin_wheels))
        assert f"sql={ADAPTER} at " in done.out
        assert "--bundle-sha256 " in done.out
        assert os.listdir(machine.at("/srv")) == [Path(FILE).name], "something was left beside the bundle"
        return Path(shutil.copy(machine.at(FILE), tmp_path_factory.mktemp("bundle")))


@pytest.fixture
def cut_off(made: Path, boot: Callable[..., Machine]) -> Machine:
    """A machine without a network that has the bundle, and nothing of ours."""
    machine = boot()
    machine.at("/srv").mkdir(exist_ok=True)
    shutil.copy(made, machine.at(FILE))
    return machine


def deploy(machine: Machine, *args: str, code: int = 0) -> Outcome:
    return cli(machine, "deploy", "--bundle", FILE, *args, code=code)


def serves(machine: Machine, key: str) -> None:
    assert ask(machine, "GET", "/v1/models").status == 401
    for model in (NAME, "sql"):
        body = {"model": model, "max_tokens": 8, "messages": [{"role": "user", "content": "Hello"}]}
        answer = ask(machine, "POST", "/v1/chat/completions", key, body)
        assert answer.status == 200, answer


def test_a_life_without_a_network(cut_off: Machine) -> None:
    machine = cut_off
    planned = cli(machine, "plan", "--bundle", FILE, "--json").changes
    install, weights, beside = planned[:3]
    assert (install["kind"], install["bundle"]) == ("install", FILE)
    assert (weights["kind"], weights["bundle"], weights["model"]) == ("import", FILE, NAME)
    assert weights["bytes"] == sum(map(len, builtin.files().values()))
    assert (beside["kind"], beside["bundle"], beside["model"]) == ("import", FILE, ADAPTER)

    done = deploy(machine)
    serves(machine, done.key)
    applied = [line for line in done.err.splitlines() if "import" in line]
    assert any(NAME in line and FILE in line for line in applied), done.err
    assert "OFFLINE=yes" in machine.at("/etc/vllm-install/qwen3vl.env").read_text()
    first = main_pid(machine)

    machine.at(FILE).unlink()  # nothing afterwards needs the file
    assert cli(machine, "deploy", "--json").changes == []
    assert main_pid(machine) == first
    cli(machine, "set-context", "2048")
    serves(machine, done.key)
    cli(machine, "rollback")
    serves(machine, done.key)
    assert cli(machine, "models", "pull", "--json").json["bytes"] >= 0
    machine.reboot()
    until("the service again", lambda: is_up(machine), machine)
    serves(machine, done.key)
    cli(machine, "uninstall", "--yes", "--purge")


def test_the_directory_it_was_unpacked_into_needs_no_second_copy(cut_off: Machine) -> None:
    machine = cut_off
    machine.shell(f"mkdir /srv/unpacked && tar -xf {FILE} -C /srv/unpacked")
    done = cli(machine, "deploy", "--bundle", "/srv/unpacked")
    serves(machine, done.key)
    blob = Path("/srv/unpacked/model/model.safetensors")
    assert machine.at(blob).stat().st_nlink == 2, "the weights were copied"


def test_killed_within_the_import_the_same_command_goes_on(cut_off: Machine) -> None:
    """At steps of the two changes that a bundle makes different; the others are those of any deploy."""
    machine = cut_off
    command = ("deploy", "--bundle", FILE)
    points = points_of(machine, *command)
    reference = files(machine)
    cli(machine, "uninstall", "--yes", "--purge")
    for change, effects in zip((1, 2), points.effects, strict=False):
        for effect in sorted({1, effects // 3, 2 * effects // 3, effects}):
            point = f"effect:{change}:{effect}"
            cut(machine, point, *command)
            serves(machine, deploy(machine).key)
            found = [
                line for line in difference(reference, files(machine)) if "checked.json" not in line
            ]  # it holds times
            assert found == [], point
            assert not machine.at("/opt/vllm-install/cache/bundle").exists()
            assert not list(machine.at("/var/cache/vllm-install/hub").rglob("*.incomplete"))
            cli(machine, "uninstall", "--yes", "--purge")


@pytest.mark.parametrize("part", ["wheels/", "model/model.safetensors"])
def test_a_wrong_byte_is_noticed_before_anything_serves(cut_off: Machine, part: str) -> None:
    machine = cut_off
    machine.shell(f"mkdir /srv/unpacked && tar -xf {FILE} -C /srv/unpacked")
    path = next(p for p in sorted(machine.at("/srv/unpacked").rglob("*")) if f"unpacked/{part}" in str(p))
    content = bytearray(path.read_bytes())
    whole = bytearray(machine.at(FILE).read_bytes())
    at = whole.index(content) + len(content) // 2
    whole[at] ^= 1
    machine.at(FILE).write_bytes(whole)
    done = deploy(machine, code=5)
    assert path.name in done.err
    assert not machine.at("/etc/systemd/system/qwen3vl.service").exists()
    assert cli(machine, "bundle", "verify", FILE, "--json", code=5).err == ""
    # The whole file, copied again, completes it.
    whole[at] ^= 1
    machine.at(FILE).write_bytes(whole)
    serves(machine, deploy(machine).key)


def test_what_the_bundle_is_not_for_is_refused_at_once(cut_off: Machine) -> None:
    machine = cut_off
    done = deploy(machine, "--model", "Org/Other", code=2)
    assert "Org/Other contradicts the bundle, which holds Org/Tiny" in done.err
    done = deploy(machine, "--bundle-sha256", "0" * 64, code=5)
    assert "another bundle" in done.err
    digest = cli(machine, "bundle", "show", FILE, "--json").json["bundle_sha256"]
    assert "nothing says who made" not in deploy(machine, "--bundle-sha256", digest).err


def test_a_signature_says_who_made_it(cut_off: Machine, standin_wheels: Path, boot: Callable[..., Machine]) -> None:
    maker = boot()
    maker.shell("mkdir -p /srv && ssh-keygen -q -t ed25519 -N '' -f /root/key")
    public = maker.at("/root/key.pub").read_text()
    signed = ("--sign-key", "/root/key", *standin(standin_wheels))
    create = (sys.executable, "-m", "installer", "bundle", "create", "-", "--model", "builtin:tiny", *signed)
    maker.shell(f"{shlex.join(map(str, create))} >{FILE}")  # as into a pipe to the other host
    cut = maker.run(sys.executable, "-c", INTO_NOTHING, *create, check=False)
    assert cut.returncode == 3, cut.stderr
    assert "stopped before its end" in cut.stderr
    shutil.copy(maker.at(FILE), cut_off.at("/srv/signed.bundle"))
    cut_off.write("/root/signers", f"build@example {public}")
    maker.shell("ssh-keygen -q -t ed25519 -N '' -f /root/other")
    cut_off.write("/root/others", f"other@example {maker.at('/root/other.pub').read_text()}")
    refused = cli(cut_off, "deploy", "--bundle", FILE, "--verify-with", "/root/signers", code=5)
    assert "is not signed" in refused.err
    refused = cli(cut_off, "deploy", "--bundle", "/srv/signed.bundle", "--verify-with", "/root/others", code=5)
    assert "signed by nobody" in refused.err
    done = cli(cut_off, "deploy", "--bundle", "/srv/signed.bundle", "--verify-with", "/root/signers")
    assert "signed by build@example" in done.err
