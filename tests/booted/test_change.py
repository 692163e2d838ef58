"""Changes to a service that is there already: each is proved, or the service never notices."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.booted.test_faults import full
from tests.kit.boot.machine import Machine
from tests.kit.boot.snapshot import difference, snapshot
from tests.kit.boot.surroundings import REPO
from tests.kit.life import SERVICE, Outcome, ask, chat, cli, is_gone, is_up, main_pid, serves, standin, unit, until
from tests.kit.standin import wheel

UNIT = f"/etc/systemd/system/{SERVICE}.service"
DROP_IN = f"{UNIT}.d"
SETTINGS = f"/etc/vllm-install/{SERVICE}.env"
STATE = f"/var/lib/vllm-install/{SERVICE}/state.json"
HOME = f"/var/cache/{SERVICE}"  # of the service; the stand-in reads its faults there
OPT = "/opt/vllm-install"  # engines are added to it, and stay for the next try
KEY = "sk-ours-5b8d0f3a9c-Xk2QzVwHj7RmTbNp"
OTHER = "sk-other-c47e91d0b6-Yt6PmDkLs3WqGf"
SET = {"MAX_MODEL_LEN": "1024", "VLLM_VERSION": "0.32.0", "PORT": "8000", "GPU_MEMORY_UTILIZATION": "0.92"}
DIES = 'def value(name):\n    return "9" if name == "die-at-start" else None\n'
CRAWLS = '\ndef number(name, default):\n    return 0.01 if name == "token-seconds" else float(value(name) or default)\n'
# version -> what is written into which of its files, over it or at its end
BAD = {
    "0.33.0": ("faults.py", "w", DIES),
    "0.34.0": ("__init__.py", "w", "raise ImportError('half a wheel')\n"),
    "0.35.0": ("faults.py", "a", CRAWLS),
}


@pytest.fixture(scope="module")
def wheels() -> Path:
    """Stand-ins: two that serve, one that imports but never comes up, one that cannot be imported, one that crawls."""
    folder = REPO / "build/standin-versions"
    for version in ("0.31.0", "0.32.0"):
        wheel.build_wheel(folder, version)
    for version, (file, how, text) in BAD.items():
        broken = folder / "broken"
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(wheel.SOURCE, broken)
        with (broken / file).open(how) as into:
            into.write(text)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(wheel, "SOURCE", broken)
            wheel.build_wheel(folder, version)
    return folder


@pytest.fixture(scope="module")
def host(wheels: Path) -> Iterator[Machine]:
    """A machine with the one service that all tests of this file share, and that outlives them all."""
    with Machine() as machine:
        bare = snapshot(machine.root)
        cli(machine, "deploy", *standin(wheels))
        yield machine
        cli(machine, "uninstall", "--yes", "--purge")
        is_gone(machine, bare)


@pytest.fixture
def machine(host: Machine) -> Iterator[Machine]:
    """The service with KEY as its only key and a context of 1024; afterwards it is what `deploy` would make of it."""
    names = listed(host)
    if names.get("default") != digest(KEY)[:8]:
        cli(host, "set-apikey", "-", stdin=KEY)
        names = listed(host)
    for name in names.keys() - {"default", "probe"}:
        cli(host, "keys", "revoke", name)
    known = json.loads(host.at(STATE).read_text())["proved"]["settings"]
    if any(str(known[name.lower()]) != value for name, value in SET.items()):
        cli(host, "set", *(f"{name}={value}" for name, value in SET.items()))
    yield host
    assert pending(host) is None
    assert cli(host, "deploy", "--json").changes == []


def pending(machine: Machine) -> object:
    return json.loads(machine.at(STATE).read_text())["pending"]


def listed(machine: Machine) -> dict[str, str]:
    return {key["name"]: key["digest"] for key in cli(machine, "keys", "--json").json}


def status(machine: Machine, key: str) -> int:
    return ask(machine, "GET", "/v1/models", key).status


def context(machine: Machine, key: str = KEY) -> int:
    return int(ask(machine, "GET", "/v1/models", key).json["data"][0]["max_model_len"])


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@contextmanager
def misbehaving(machine: Machine, words: str) -> Iterator[None]:
    machine.write(f"{HOME}/standin", words)
    try:
        yield
    finally:
        machine.at(f"{HOME}/standin").unlink()


@contextmanager
def dropped_in(machine: Machine, text: str) -> Iterator[None]:
    machine.write(f"{DROP_IN}/admin.conf", f"[Service]\n{text}\n")
    machine.run("systemctl", "daemon-reload")
    try:
        yield
    finally:
        machine.shell(f"rm -r {DROP_IN}; systemctl daemon-reload")


@contextmanager
def unchanged(machine: Machine) -> Iterator[None]:
    """Within, nothing of the service changes: not a file beside the record of what was tried, and no process."""
    pid, before = main_pid(machine), snapshot(machine.root, [HOME, DROP_IN, OPT])
    yield
    after = snapshot(machine.root, [HOME, DROP_IN, OPT])
    assert [line for line in difference(before, after) if not line.split()[1].startswith(STATE)] == []
    assert main_pid(machine) == pid
    assert pending(machine) is None
    serves(machine, KEY)
    assert context(machine) == 1024


# set-apikey


def test_a_made_key_is_shown_once_and_takes_the_old_ones_place(machine: Machine) -> None:
    pid = main_pid(machine)
    done = cli(machine, "set-apikey")
    assert done.out == f"{done.key}\n"
    assert re.fullmatch(r"sk-qwen3vl-[\w-]{43}", done.key)
    assert done.key not in done.err
    assert (status(machine, done.key), status(machine, KEY)) == (200, 401)
    assert main_pid(machine) == pid
    serves(machine, done.key)
    shown = machine.shell(f"systemctl cat {SERVICE}; systemctl show {SERVICE}; ps axww -o args; journalctl -o export")
    assert digest(done.key) in shown.stdout
    assert done.key not in shown.stdout
    found = machine.run("grep", "-rlaF", "--", done.key, "/etc", "/run", "/var", check=False)
    assert (found.returncode, found.stdout) == (1, "")


def test_as_data(machine: Machine) -> None:
    made = cli(machine, "set-apikey", "--json").json
    assert made == {"service": SERVICE, "name": "default", "api_key": made["api_key"], "old_until": None}
    assert status(machine, made["api_key"]) == 200
    assert cli(machine, "set-apikey", "-", "--json", stdin=OTHER).json["api_key"] is None


def test_the_old_key_may_be_kept_for_a_while(machine: Machine) -> None:
    pid = main_pid(machine)
    done = cli(machine, "set-apikey", "--keep-old", "10m")
    assert (status(machine, done.key), status(machine, KEY)) == (200, 200)
    old = {key["name"]: key for key in cli(machine, "keys", "--json").json}["default-old"]
    assert old["digest"] == digest(KEY)[:8]
    assert f"the old key works until {old['expiry']}" in done.err
    assert cli(machine, "deploy", "--json").changes == []
    cli(machine, "set-apikey", "-", "--keep-old", "1s", stdin=OTHER)
    until("the old key is worth nothing", lambda: status(machine, done.key) == 401, machine)
    assert status(machine, OTHER) == 200
    assert main_pid(machine) == pid


def test_a_key_has_a_name_and_a_role(machine: Machine) -> None:
    made = {role: cli(machine, "set-apikey", "--name", role, "--role", role).key for role in ("metrics", "admin")}
    assert ask(machine, "GET", "/metrics", made["metrics"]).status == 200
    assert status(machine, made["metrics"]) == 403
    assert ask(machine, "POST", "/pause", KEY, {}).status == 403
    assert ask(machine, "POST", "/pause", made["admin"], {}).status == 404  # let through; the stand-in has none
    serves(machine, KEY)
    roles = {key["name"]: key["role"] for key in cli(machine, "keys", "--json").json}
    assert roles == {"default": "inference", "probe": "inference", "metrics": "metrics", "admin": "admin"}


def test_a_key_comes_from_standard_input_or_a_file(machine: Machine) -> None:
    cli(machine, "set-apikey", "-", stdin=f"  {OTHER}\n")
    assert (status(machine, OTHER), status(machine, KEY)) == (200, 401)
    machine.write("/root/key", f"{KEY}\n", 0o600)
    done = cli(machine, "set-apikey", "--file", "/root/key")
    assert done.out == "", "a key that the user has is not repeated"
    assert (status(machine, OTHER), status(machine, KEY)) == (401, 200)
    assert cli(machine, "set-apikey", OTHER, "--file", "/root/key", code=2).err
    machine.at("/root/key").unlink()


REFUSED_KEYS = {
    "short": "abcd",
    "of low variety": "a" * 40,
    "spaces": "sk-0123456789 abcdefghijklmnop",
    "unicode": "sk-0123456789-äbcdefghijklmnop",
    "line end": "sk-0123456789\nExecStart=/bin/sh -c id",
    "colon": "sk-0123456789:abcdefghijklmnop",
    "10 kB": "sk-0123456789" * 800,
    "nothing": "",
}


def test_a_key_that_would_not_be_safe_is_refused(machine: Machine) -> None:
    with unchanged(machine):
        for name, key in REFUSED_KEYS.items():
            done = cli(machine, "set-apikey", "-", code=2, stdin=key)
            assert "API key" in done.err, name
            assert not key or key not in done.err, name


REFUSED_ARGUMENTS = (
    ("--keep-old", "0"), ("--keep-old", "soon"), ("--keep-old", "2000d"), ("--name", "probe"), ("--name", "A b"),
    ("--name", ""), ("--role", "root"), ("--service", "../x"), ("--file", "/nowhere"),
)  # fmt: skip


def test_what_cannot_be_meant_is_refused(machine: Machine) -> None:
    with unchanged(machine):
        for args in REFUSED_ARGUMENTS:
            cli(machine, "set-apikey", *args, code=2)


def test_on_a_service_that_is_not_there(machine: Machine) -> None:
    for args in (("set-apikey",), ("keys",), ("keys", "revoke", "default"), ("set-context", "2048"), ("rollback",)):
        done = cli(machine, *args, "--service", "other", code=3)
        assert "manages no service other" in done.err
        assert SERVICE in done.err


# The service is in no state to take it at once


def test_on_a_stopped_service_only_the_unit_changes(machine: Machine) -> None:
    machine.run("systemctl", "stop", SERVICE)
    before = snapshot(machine.root)
    done = cli(machine, "set-apikey")
    changed = [line.split()[1].rstrip(":") for line in difference(before, snapshot(machine.root))]
    assert changed == [UNIT, STATE]
    assert "works from its next start on" in done.err
    assert not is_up(machine)
    machine.run("systemctl", "start", SERVICE)
    assert (status(machine, done.key), status(machine, KEY)) == (200, 401)


def test_on_a_starting_service_it_waits_for_nothing(machine: Machine) -> None:
    with misbehaving(machine, "stall=load"):
        machine.run("systemctl", "restart", "--no-block", SERVICE)
        until("it loads", lambda: "loading" in unit(machine, "StatusText")["StatusText"], machine)
        done = cli(machine, "set-apikey", "-", stdin=OTHER)
        assert "the key default is in force as soon as the service answers" in done.err
    until("it is up", lambda: is_up(machine), machine)
    assert (status(machine, OTHER), status(machine, KEY)) == (200, 401)


def test_on_a_failed_service_only_the_unit_changes(machine: Machine) -> None:
    with misbehaving(machine, "die-at-start=2"):
        machine.run("systemctl", "restart", SERVICE, check=False)
        assert unit(machine, "ActiveState")["ActiveState"] == "failed"
        made = cli(machine, "set-apikey").key
        assert unit(machine, "ActiveState")["ActiveState"] == "failed"
    machine.run("systemctl", "start", SERVICE)
    assert (status(machine, made), status(machine, KEY)) == (200, 401)


def test_on_a_masked_service_it_says_so(machine: Machine) -> None:
    machine.shell(f"mv {UNIT} /root/unit; ln -s /dev/null {UNIT}; systemctl daemon-reload")
    try:
        for args in (("set-apikey",), ("keys", "revoke", "default"), ("set-context", "2048")):
            done = cli(machine, *args, code=3)
            assert f"{UNIT} is masked" in done.err
            assert f"systemctl unmask {SERVICE}" in done.err
        assert machine.at(UNIT).readlink() == Path("/dev/null")
    finally:
        machine.shell(f"mv -f /root/unit {UNIT}; systemctl daemon-reload")
    serves(machine, KEY)


def test_a_disabled_service_stays_disabled(machine: Machine) -> None:
    machine.run("systemctl", "disable", SERVICE)
    made = cli(machine, "set-apikey").key
    assert (status(machine, made), status(machine, KEY)) == (200, 401)
    assert machine.run("systemctl", "is-enabled", SERVICE, check=False).stdout == "disabled\n"
    cli(machine, "deploy")


# What was written into the unit by hand


def test_an_edit_by_hand_outlives_a_rotation(machine: Machine) -> None:
    machine.at(UNIT).write_text(machine.at(UNIT).read_text().replace("[Service]\n", "[Service]\nNice=7\n# mine\n"))
    made = cli(machine, "set-apikey").key
    assert status(machine, made) == 200
    assert "Nice=7\n# mine\n" in machine.at(UNIT).read_text()
    for args in (("set-context", "2048"), ("set", "PORT=8001")):
        done = cli(machine, *args, code=3)
        assert f"{UNIT} was edited by hand" in done.err
    assert "Nice=7\n# mine\n" in machine.at(UNIT).read_text()
    cli(machine, "set-context", "2048", "--discard-edits")
    assert "# mine" not in machine.at(UNIT).read_text()
    serves(machine, made)


def paste(machine: Machine, key: str) -> None:
    words = re.sub(r" --api-key ", f" --api-key {key} --api-key ", machine.at(UNIT).read_text(), count=1)
    words = re.sub(r"^(ExecReload=.*? )(--api-key )", rf"\1--api-key {key} \2", words, flags=re.MULTILINE)
    machine.at(UNIT).write_text(words)
    machine.shell(f"systemctl daemon-reload; systemctl reload {SERVICE}")


def test_a_key_pasted_in_by_hand_is_a_key_like_any_other(machine: Machine) -> None:
    paste(machine, OTHER)
    assert (status(machine, OTHER), status(machine, KEY)) == (200, 200)
    made = cli(machine, "set-apikey", "--name", "new").key
    assert [status(machine, key) for key in (OTHER, KEY, made)] == [200, 200, 200]
    assert OTHER not in cli(machine, "keys").out
    assert OTHER not in machine.at(STATE).read_text()
    named = {start: name for name, start in listed(machine).items()}
    cli(machine, "keys", "revoke", named[digest(OTHER)[:8]])
    assert [status(machine, key) for key in (OTHER, KEY, made)] == [401, 200, 200]
    assert OTHER not in machine.at(UNIT).read_text()


def test_the_admins_drop_in_outlives_every_change(machine: Machine) -> None:
    with dropped_in(machine, "Environment=ADMIN=was-here"):
        made = cli(machine, "set-apikey", "--name", "x").key
        cli(machine, "set-context", "2048")
        cli(machine, "rollback")
        assert machine.at(f"{DROP_IN}/admin.conf").read_text() == "[Service]\nEnvironment=ADMIN=was-here\n"
        assert "ADMIN=was-here" in machine.run("cat", f"/proc/{main_pid(machine)}/environ").stdout.split("\0")
        serves(machine, made)


# keys


def test_keys_are_listed_without_being_told(machine: Machine) -> None:
    found = cli(machine, "keys", "--json").json
    probe = next(key for key in found if key["name"] == "probe")
    default = {"name": "default", "role": "inference", "digest": digest(KEY)[:8], "expiry": None, "expired": False}
    assert found == [default | {"last_used": found[0]["last_used"], "limit": None}, probe]
    assert probe["last_used"] is None, "the watcher uses nothing up"
    rows = [line.split(maxsplit=3) for line in cli(machine, "keys").out.splitlines()]
    assert [row[:3] for row in rows] == [[key["name"], key["role"], key["digest"]] for key in found]
    assert all(re.fullmatch(r"no expiry(  last used \d{4}-\S+Z)?", row[3]) for row in rows)


def test_a_revoked_key_is_worth_nothing_at_once(machine: Machine) -> None:
    pid, made = main_pid(machine), cli(machine, "set-apikey", "--name", "guest").key
    assert status(machine, made) == 200
    cli(machine, "keys", "revoke", "guest")
    assert (status(machine, made), status(machine, KEY)) == (401, 200)
    assert main_pid(machine) == pid


def test_revoking_what_must_stay_is_refused(machine: Machine) -> None:
    cli(machine, "set-apikey", "--name", "grafana", "--role", "metrics")
    for name, said in (("default", "last key"), ("nobody", "keys: default, grafana"), ("probe", "the probe key stays")):
        with unchanged(machine):
            assert said in cli(machine, "keys", "revoke", name, code=2).err


# set-context and set


@pytest.mark.parametrize(("asked", "given"), [("2048", 2048), ("16k", 16384), ("32K", 32768), ("auto", 4096)])
def test_a_context_that_fits_is_served(machine: Machine, asked: str, given: int) -> None:
    changes = cli(machine, "set-context", asked, "--json").changes
    assert [change.get("path", change["kind"]) for change in changes] == [SETTINGS, UNIT, "handover"]
    assert context(machine) == given
    serves(machine, KEY)
    if asked != "auto":
        assert cli(machine, "set-context", str(given), "--json").changes == []


REFUSED_CONTEXTS = {
    "0": 2, "-1": 2, "1k5": 2, "1000000000000": 2, "": 2, "1024 --trust-remote-code": 2,
    "32769": 3, "64k": 3,
}  # fmt: skip


def test_a_context_that_cannot_be_is_refused(machine: Machine) -> None:
    with unchanged(machine):
        for asked, code in REFUSED_CONTEXTS.items():
            done = cli(machine, "set-context", asked, code=code)
            assert code != 3 or "ask for 32768 at most; nothing was changed" in done.err, asked


def test_a_context_that_vllm_refuses_is_undone(machine: Machine) -> None:
    before = snapshot(machine.root, [HOME])
    with misbehaving(machine, "refuse-context=2000"):
        done = cli(machine, "set-context", "4096", code=6)
    assert "asked 4096; this GPU fits 2000; the service is back at 1024" in done.err
    assert "set-context 2000" in done.err
    changed = difference(before, snapshot(machine.root, [HOME]))
    assert [line for line in changed if not line.split()[1].startswith(STATE)] == []
    assert context(machine) == 1024
    serves(machine, KEY)
    assert "undone" in cli(machine, "status", "--json").json["last_changes"][0]["outcome"]


def test_what_fits_is_told_before_anything_is_touched(machine: Machine) -> None:
    with unchanged(machine):
        table = cli(machine, "set-context", "4096", "--dry-run").out
        assert re.search(r"^ +4096 +\d+ +[\d.]+ GiB$", table, re.MULTILINE), table
        assert "largest context 32768" in table
        data = cli(machine, "set-context", "4096", "--dry-run", "--json").json
        assert 4096 in [row["context"] for row in data["rows"]]


def test_several_settings_are_one_change(machine: Machine) -> None:
    changes = cli(machine, "set", "PORT=8001", "max-model-len=2048", "GPU_MEMORY_UTILIZATION=0.3", "--json").changes
    assert [change["kind"] for change in changes] == ["write", "write", "handover"]
    serves(machine, KEY, 8001)
    assert ask(machine, "GET", "/v1/models", KEY, port=8001).json["data"][0]["max_model_len"] == 2048
    cli(machine, "set", "PORT=8000")


REFUSED_SETTINGS = {
    ("PRT=1",): "did you mean PORT?",
    ("PORT=8001", "PRT=1"): "did you mean PORT?",
    ("PORT",): "nothing is to be set",
    ("PORT=99999",): "between 1 and 65535",
    ("PORT=",): "between 1 and 65535",
    ("SERVED_MODEL_NAME=a\nb",): "line breaks",
    (): "nothing is to be set",
}


def test_a_setting_that_cannot_be_is_refused(machine: Machine) -> None:
    with unchanged(machine):
        for args, said in REFUSED_SETTINGS.items():
            assert said in cli(machine, "set", *args, code=2).err


# upgrade, rollback, prune


def engines(machine: Machine) -> set[str]:
    return {path.name for path in machine.at("/opt/vllm-install/engines").iterdir()}


def version(machine: Machine) -> str:
    return str(ask(machine, "GET", "/version", KEY).json["version"])


def test_an_upgrade_is_proved_and_the_one_before_is_kept(machine: Machine) -> None:
    guest = cli(machine, "set-apikey", "--name", "guest").key
    cli(machine, "upgrade", "--vllm-version", "0.31.0")
    assert version(machine) == "0.31.0"
    serves(machine, guest)
    cli(machine, "keys", "revoke", "guest")
    kept = engines(machine)
    changes = cli(machine, "rollback", "--json").changes
    assert [change["kind"] for change in changes].count("handover") == 1
    assert "install" not in [change["kind"] for change in changes]
    assert engines(machine) == kept
    assert version(machine) == "0.32.0"
    assert (status(machine, KEY), status(machine, guest)) == (200, 401)
    assert unit(machine, "NRestarts")["NRestarts"] == "0"


def test_an_upgrade_that_does_not_serve_leaves_the_old_one_serving(machine: Machine) -> None:
    before = snapshot(machine.root, [HOME, OPT])
    done = cli(machine, "upgrade", "--vllm-version", "0.33.0", code=6)
    assert f"{SERVICE}.service is back as it was" in done.err
    changed = difference(before, snapshot(machine.root, [HOME, OPT]))
    assert [line for line in changed if not line.split()[1].startswith(STATE)] == []
    assert version(machine) == "0.32.0"
    serves(machine, KEY)


def test_an_engine_that_cannot_be_imported_stops_nothing(machine: Machine) -> None:
    with unchanged(machine):
        assert "half a wheel" in cli(machine, "upgrade", "--vllm-version", "0.34.0", code=4).err


def test_an_upgrade_that_makes_it_slower_is_undone_and_one_that_does_not_stays(machine: Machine) -> None:
    """Its speed is that of the one before, or a small part of it: nothing between."""
    measuring = ("upgrade", "--bench", "--concurrency", "2", "--vllm-version")
    before = engine_of(machine)
    slower = cli(machine, *measuring, "0.35.0", code=6)
    assert re.search(r"\d+ % slower than before, and 15 % is allowed: [\d.]+ tokens/s at best before", slower.err)
    assert f"{SERVICE}.service is back as it was" in slower.err
    assert (version(machine), engine_of(machine)) == ("0.32.0", before)
    tried = cli(machine, "bench", "history", "--json").json
    assert [each["served"]["version"] for each in tried] == ["0.32.0", "0.35.0", "0.35.0"], "a slow one twice"
    compared = re.search(r"vllm-install (bench compare \S+ \S+) --service", slower.err)
    assert compared
    assert cli(machine, *compared[1].split(), "--json").json["slower"] > 0.5

    cli(machine, *measuring, "0.31.0", "--margin", "90%")
    assert version(machine) == "0.31.0"
    assert [each["served"]["version"] for each in cli(machine, "bench", "history", "--json").json[3:]] == [
        "0.32.0",
        "0.31.0",
    ]
    said = cli(machine, *measuring, "0.31.0").err
    assert "nothing of what serves was changed, so nothing was measured" in said
    assert len(cli(machine, "bench", "history", "--json").json) == 5


def engine_of(machine: Machine) -> str:
    return str(json.loads(machine.at(STATE).read_text())["proved"]["engine"]["id"])


def test_prune_removes_only_what_nothing_can_come_back_to(machine: Machine) -> None:
    cli(machine, "upgrade", "--vllm-version", "0.33.0", code=6)  # its engine stays for the next try
    cli(machine, "upgrade", "--vllm-version", "0.31.0")
    mine = {json.loads(machine.at(STATE).read_text())[which]["engine"]["id"] for which in ("proved", "previous")}
    assert len(mine) == 2
    extra = engines(machine) - mine
    assert extra
    pid = main_pid(machine)
    planned = cli(machine, "prune", "--dry-run", "--json").changes
    assert {
        path.name for path in map(Path, (change["path"] for change in planned)) if path.parent.name == "engines"
    } == extra
    assert engines(machine) == mine | extra
    assert cli(machine, "prune", "--yes", "--json").changes == planned
    assert engines(machine) == mine
    assert cli(machine, "prune", "--yes", "--json").changes == []
    assert main_pid(machine) == pid
    cli(machine, "rollback")
    assert version(machine) == "0.32.0"


# Faults


def test_two_admins_at_once(machine: Machine) -> None:
    with misbehaving(machine, "stall=load"):
        first = machine.start(sys.executable, "-m", "installer", "set-context", "2048")
        until("it is handed over", lambda: unit(machine, "SubState")["SubState"] == "reload", machine)
        for args in (("set-context", "4096"), ("rollback",), ("uninstall", "--yes"), ("eject", "--yes"), ("deploy",)):
            done = cli(machine, *args, code=3)
            assert re.search(r"under way: vllm-install set-context.* \(pid \d+\)", done.err), done.err
        assert cli(machine, "keys").out, "looking needs no lock"
        cli(machine, "prune", "--yes")
    first.communicate(timeout=300)
    assert first.returncode == 0
    assert context(machine) == 2048
    serves(machine, KEY)


CHANGES = (("set-apikey",), ("keys", "revoke", "guest"), ("set-context", "2048"), ("set", "PORT=8001"))


def attempt(machine: Machine, args: tuple[str, ...]) -> Outcome:
    """Try a change that a fault forbids: an error, and no word of a host that could not be put back."""
    done = machine.cli(*args, check=False)
    assert done.returncode in (1, 3, 4, 6), f"{args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    assert "could not be put back" not in done.stderr
    assert "sk-" not in done.stdout, "a key was shown that is not in force"
    return Outcome(done.returncode, done.stdout, done.stderr)


def test_a_read_only_etc(machine: Machine) -> None:
    guest = cli(machine, "set-apikey", "--name", "guest").key
    for args in CHANGES:
        with unchanged(machine):
            machine.shell("mount --bind /etc /etc; mount -o remount,bind,ro /etc")
            try:
                done = attempt(machine, args)
            finally:
                machine.run("umount", "/etc")
            assert "/etc" in done.err
            assert "ead-only" in done.err
    assert status(machine, guest) == 200


@pytest.mark.parametrize("path", ["/etc/systemd/system", "/etc/vllm-install", f"/var/lib/vllm-install/{SERVICE}"])
def test_a_full_disk(machine: Machine, path: str) -> None:
    guest = cli(machine, "set-apikey", "--name", "guest").key
    fill, clear = full(path)
    for args in CHANGES:
        if path == "/etc/vllm-install" and args in CHANGES[:2]:
            continue  # they write nothing there
        with unchanged(machine):
            machine.shell(fill)
            try:
                done = attempt(machine, args)
                serves(machine, KEY)
            finally:
                machine.shell(clear)
            assert re.search(r"No space left|is full", done.err), done.err
            assert path in done.err
    assert status(machine, guest) == 200


@pytest.mark.parametrize("command", ["/bin/false", "/bin/true", "/bin/sleep infinity"])
def test_a_reload_that_fails_or_does_nothing_or_never_ends_keeps_no_key_alive(machine: Machine, command: str) -> None:
    guest = cli(machine, "set-apikey", "--name", "guest").key
    with dropped_in(machine, f"ExecReload=\nExecReload={command}"):
        new = cli(machine, "set-apikey").key
        cli(machine, "keys", "revoke", "guest")
        assert [status(machine, key) for key in (new, guest, KEY)] == [200, 401, 401]
        # Nor does one keep a deploy from handing over what was edited by hand.
        machine.at(UNIT).write_text(machine.at(UNIT).read_text().replace(digest(new), digest(OTHER)))
        assert [change["kind"] for change in cli(machine, "deploy", "--json").changes] == ["keys"]
        assert [status(machine, key) for key in (new, OTHER)] == [401, 200]


def test_an_engine_that_dies_during_the_proof(machine: Machine) -> None:
    with misbehaving(machine, "die-on-completion"):
        cli(machine, "set-context", "2048", code=7)
    until("it is up again", lambda: is_up(machine), machine)
    cli(machine, "set-context", "2048")
    assert chat(machine, KEY).status == 200
