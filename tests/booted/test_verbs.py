"""What operators type and are told: services by name, dry runs, questions, and messages that hold."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from tests.kit.boot.machine import Machine
from tests.kit.boot.snapshot import difference, snapshot
from tests.kit.life import SERVICE, ask, chat, cli, main_pid, serves, standin, unit, until

HOME = f"/var/cache/{SERVICE}"
SETTINGS = f"/etc/vllm-install/{SERVICE}.env"


@pytest.fixture(scope="module")
def machine(standin_wheels: str) -> Iterator[Machine]:
    with Machine() as machine:
        machine.key = cli(machine, "deploy", *standin(standin_wheels)).key  # type: ignore[attr-defined, arg-type]
        yield machine


@pytest.fixture(autouse=True)
def _as_before(machine: Machine) -> Iterator[None]:
    yield
    machine.shell(f"rm -f {HOME}/standin; systemctl reset-failed {SERVICE} || :; systemctl start {SERVICE}")
    cli(machine, "set", "PORT=8000", "VLLM_ARGS=", "VLLM_VERSION=0.32.0", "MAX_MODEL_LEN=1024")


def key(machine: Machine) -> str:
    return str(machine.key)  # type: ignore[attr-defined]


# A service by its name


def test_a_service_is_a_word_as_for_systemctl(machine: Machine) -> None:
    assert f"{SERVICE}: active (running)" in cli(machine, "status", SERVICE).out
    assert cli(machine, "doctor", SERVICE).out == f"{SERVICE}: nothing is wrong\n"
    assert cli(machine, "keys", SERVICE).out == cli(machine, "keys").out
    assert cli(machine, "keys", "--json", SERVICE).json == cli(machine, "keys", "--json").json
    for words in ((SERVICE, "-n", "1"), ("-n", "1", SERVICE), (SERVICE, "-n1", "_TRANSPORT=stdout")):
        assert "refused" in cli(machine, "logs", *words).out, words
    assert cli(machine, "client-config", SERVICE, "--format", "env").out
    cli(machine, "test", SERVICE, "--no-tools")
    for verb in ("status", "keys", "logs", "doctor", "test", "set", "rollback"):
        asked = {"_VLLM_INSTALL_COMPLETE": "bash_complete", "COMP_WORDS": f"vllm-install {verb} qw", "COMP_CWORD": "2"}
        offered = machine.run(sys.executable, "-m", "installer", env=asked).stdout.splitlines()
        assert f"plain,{SERVICE}" in offered, verb


def test_a_service_is_exported_by_anybody_and_adopted_as_it_was_proved(
    machine: Machine, standin_wheels: Path
) -> None:  # fmt: skip
    before, place = snapshot(machine.root, [HOME]), "/srv/exported"
    nobody = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--", sys.executable)
    for form, file in (("compose", "llm.yml"), ("quadlet", "llm.container"), ("k8s", "llm.yaml")):
        ran = machine.run(*nobody, "-m", "installer", "export", "--format", form, SERVICE)
        assert f"from the service\n# {SERVICE} as it was proved" in ran.stdout
        assert "whoever has the key may all" in ran.stderr
        assert key(machine) not in ran.stdout
        assert difference(before, snapshot(machine.root, [HOME])) == []
        machine.write(f"{place}/{file}", ran.stdout)
        machine.write(f"{place}/{SERVICE}.key.env", f"VLLM_API_KEY='{key(machine)}'\n", 0o600)
        engine = ("ENGINE=cpu", f"FIND_LINKS={standin_wheels}", "OFFLINE=yes", "PORT=8005")
        asked = cli(machine, "adopt", f"{place}/{file}", *engine, "--service", "other", "--json", code=3).json
        assert asked["settings"] == {
            "MODEL_NAME": "builtin:tiny", "GPU_MEMORY_UTILIZATION": "0.4", "PORT": "8005", "ENGINE": "cpu",
            "FIND_LINKS": str(standin_wheels), "OFFLINE": "yes", "TOOL_CALL_PARSER": "none", "REASONING_PARSER": "none",
        }  # fmt: skip
        machine.shell(f"rm -r {place}")
    said = cli(machine, "export", "--format", "compose", "-o", "/srv/llm.yml").err
    assert "HOLD=120" in said
    assert "is there already" in cli(machine, "export", "--format", "compose", "-o", "/srv/llm.yml", code=3).err
    machine.shell("rm /srv/llm.yml")


# Dry runs


def test_a_dry_run_says_what_would_change_and_changes_nothing(machine: Machine) -> None:
    pid, before = main_pid(machine), snapshot(machine.root, [HOME])
    assert cli(machine, "set", "--port", "8001", "--dry-run").out.splitlines()[-1] == (
        f"hand {SERVICE}.service over to its successor, while callers wait"
    )
    assert (
        cli(machine, "set", "PORT=8001", "--dry-run", "--json").changes
        == cli(machine, "deploy", "--port", "8001", "--dry-run", "--json").changes
    )
    assert cli(machine, "upgrade", "--vllm-version", "0.31.0", "--dry-run", "--json").changes[0]["kind"] == "install"
    assert cli(machine, "deploy", "--dry-run").out == "nothing to change\n"
    assert difference(before, snapshot(machine.root, [HOME])) == []
    assert main_pid(machine) == pid
    cli(machine, "set", "--context", "2048")
    pid = main_pid(machine)
    assert [change["kind"] for change in cli(machine, "rollback", "--dry-run", "--json").changes][-1] == "handover"
    assert main_pid(machine) == pid
    assert "manages no service other" in cli(machine, "set", "other", "PORT=1", "--dry-run", code=3).err


# set, upgrade, keys


def test_set_takes_the_options_of_deploy_and_vllms_own_flags(machine: Machine) -> None:
    cli(machine, "set", SERVICE, "--port", "8001", "MAX_MODEL_LEN=2048", "--", "--max-num-seqs", "64")
    serves(machine, key(machine), 8001)
    settings = machine.at(SETTINGS).read_text()
    assert "\nPORT=8001\n" in settings
    assert "\nMAX_MODEL_LEN=2048\n" in settings
    assert "\nVLLM_ARGS='--max-num-seqs 64'\n" in settings


def test_an_upgrade_says_when_it_goes_back_and_does_so_only_when_asked(machine: Machine) -> None:
    said = cli(machine, "upgrade", "--vllm-version", "0.31.0").err
    assert "vLLM 0.31.0 is older than 0.32.0, which is set now" in said
    assert "is older" not in cli(machine, "upgrade").err
    assert ask(machine, "GET", "/version", key(machine)).json == {"version": "0.32.0"}


@pytest.mark.parametrize("option", ["--revision", "--model"])  # the second is what it was called at first
def test_the_built_in_model_has_no_revisions(machine: Machine, option: str) -> None:
    done = cli(machine, "upgrade", option, "foo", code=2)
    assert "builtin:tiny has no revisions: it comes from no hub" in done.err
    assert "vllm-install set MODEL_NAME=foo" in done.err


def test_an_expired_key_says_so(machine: Machine) -> None:
    cli(machine, "set-apikey", "--name", "guest")
    cli(machine, "set-apikey", "--name", "guest", "--keep-old", "1s")
    until("it has ended", lambda: [k for k in cli(machine, "keys", "--json").json if k["expired"]], machine)
    row = next(line for line in cli(machine, "keys").out.splitlines() if line.startswith("guest-old"))
    assert re.search(r" expired at \d{4}-\d\d-\d\dT", row)
    assert re.search(r"guest-old \(\w+…\) expired at", cli(machine, "status").out)
    cli(machine, "keys", "revoke", "guest-old")
    cli(machine, "keys", "revoke", "guest")


def test_a_limit_is_in_force_at_once_is_shown_and_goes_with_its_key(machine: Machine) -> None:
    team, pid = cli(machine, "set-apikey", "--name", "team-a").key, main_pid(machine)
    said = cli(machine, "keys", "limit", "team-a", "--requests", "2/min", "--budget", "5M/month")
    assert said.out == f"{SERVICE}: the key team-a is limited: requests 2/min, budget 5000000/month\n"
    until("it is refused", lambda: chat(machine, team).status == 429, machine)
    assert chat(machine, key(machine)).status == 200, "another key has no part in it"
    line = "refused POST '/v1/chat/completions' from 127.0.0.1: the key team-a: "

    def is_said() -> bool:
        """After so many other refusals a line comes only now and then."""
        chat(machine, team)
        return line in machine.journal(f"--unit={SERVICE}")

    until("it is in the journal", is_said, machine)
    (used,) = cli(machine, "usage", "--key", "team-a", "--json").json["keys"]
    assert (used["requests"] >= 2, used["refused"] >= 1, used["errors"]) == (True, True, 0)
    row = next(line for line in cli(machine, "keys").out.splitlines() if line.startswith("team-a"))
    assert re.search(r"  last used \d{4}-\S+Z  requests 2/min, budget 5000000/month$", row)
    nobody = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", sys.executable, "-m", "installer")
    assert "only root can see" in machine.run(*nobody, "usage", check=False).stderr
    shown = json.loads(machine.run(*nobody, "keys", "--json").stdout)
    assert {each["name"]: (each["last_used"], each["limit"]) for each in shown}["team-a"] == (
        None, {"concurrent": None, "requests": 2, "tokens": None, "budget": 5000000, "priority": "normal"},
    )  # fmt: skip
    for words in (
        ("nobody", "--requests", "1/min"),
        ("team-a", "--requests", "0/min"),
        ("team-a",),
        ("probe", "--none"),
    ):
        cli(machine, "keys", "limit", *words, code=2)
    cli(machine, "keys", "revoke", "team-a")
    assert not machine.at(f"/etc/vllm-install/{SERVICE}.limits").exists()
    assert main_pid(machine) == pid


def test_the_remedy_for_a_key_that_ends_lets_it_work_until_then(machine: Machine) -> None:
    path = f"/etc/systemd/system/{SERVICE}.service"
    made = cli(machine, "set-apikey", "--name", "agent").key
    machine.at(path).write_text(re.sub(r"(agent=sha256:\w+)", r"\1@2099-01-01T00:00:00Z", machine.at(path).read_text()))
    machine.shell("date -u -d '+5 days' +%Y-%m-%dT00:00:00Z >/root/ends; "
                  f"sed -i \"s/2099-01-01T00:00:00Z/$(cat /root/ends)/\" {path}; "
                  f"systemctl daemon-reload; systemctl reload {SERVICE}")  # fmt: skip
    findings = cli(machine, "doctor", "--json").json["findings"]
    assert [each["id"] for each in findings] == ["key-expires"], findings
    finding = findings[0]
    remedy = finding["commands"][0].split()[2:]
    new = cli(machine, *remedy).key
    assert (chat(machine, made).status, chat(machine, new).status) == (200, 200)
    assert cli(machine, "doctor", "--json").json["findings"] == [], "of an old key that is to end nothing is said"
    for name in ("agent-old", "agent"):
        cli(machine, "keys", "revoke", name)


# set-context


def test_a_context_into_which_no_chat_fits_is_undone(machine: Machine) -> None:
    machine.write(f"{HOME}/standin", "template=400")
    done = cli(machine, "set-context", "300", code=6)
    assert "the shortest chat was answered with 400" in done.err
    assert "contains at least 400 input tokens.; the service is back at 1024" in done.err
    assert "vllm-install set-context 1024" in done.err
    serves(machine, key(machine))
    assert ask(machine, "GET", "/v1/models", key(machine)).json["data"][0]["max_model_len"] == 1024


def test_a_context_that_is_of_no_use_is_refused_with_a_reason(machine: Machine) -> None:
    pid = main_pid(machine)
    done = cli(machine, "set-context", "16", code=2)
    assert "a context of 16 tokens is too small to chat in" in done.err
    assert "ask for 256 at least; nothing was changed" in done.err
    assert main_pid(machine) == pid


# status


def test_status_ends_as_systemctl_status_does(machine: Machine) -> None:
    before = unit(machine, "ActiveEnterTimestamp")["ActiveEnterTimestamp"]
    for how in (
        "",
        f"systemctl stop {SERVICE}",
        f"echo die-at-start=2 >{HOME}/standin; systemctl start {SERVICE} || :",
    ):
        machine.shell(how or ":")
        theirs = machine.run("systemctl", "status", SERVICE, check=False).returncode
        ours = machine.cli("status", "--json", check=False)
        assert ours.returncode == theirs == (3 if how else 0), how
        assert machine.cli("chat", "Hi", "--max-tokens=4", check=False).returncode == theirs, how
    machine.shell(f"rm {HOME}/standin; systemctl start {SERVICE}; systemctl stop {SERVICE}")
    since = cli(machine, "status", "--json", code=3).json["since"]
    assert since == unit(machine, "InactiveEnterTimestamp")["InactiveEnterTimestamp"], "since when it is stopped"
    assert datetime.strptime(since.split()[2], "%H:%M:%S")
    assert since != before


# Questions


@pytest.mark.parametrize(("answer", "code"), [("n\n", 3), ("\x03", 130), ("\x04", 130)])
@pytest.mark.parametrize("verb", ["uninstall", "eject"])
def test_a_question_that_is_not_agreed_to_changes_nothing(machine: Machine, verb: str, answer: str, code: int) -> None:
    script = (
        "import os, pty, select, sys\n"
        f"pid, end = pty.fork()\n"
        f"if pid == 0: os.execv(sys.executable, [sys.executable, '-m', 'installer', '{verb}'])\n"
        "said = b''\n"
        "while b'[y/N]' not in said: said += os.read(end, 1000)\n"
        "try:\n"
        "  while True:\n"  # Python loses a Ctrl-C that comes between the question and its waiting for the answer
        f"    os.write(end, {answer!r}.encode())\n"
        "    while select.select([end], [], [], 0.5)[0]: said += os.read(end, 1000)\n"
        "except OSError: pass\n"
        "print(said.decode()); print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    pid = main_pid(machine)
    shown = machine.run(sys.executable, "-c", script).stdout.splitlines()
    assert shown[-1] == str(code), shown
    assert any("nothing was changed" in line for line in shown), shown
    assert not any("continues" in line for line in shown), shown
    assert main_pid(machine) == pid
