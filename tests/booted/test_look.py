"""status, status --watch, logs and doctor as operators meet them: as root or not, on a terminal or in a pipe."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen
from typing import Any

import jsonschema
import psutil
import pytest

from tests.kit.boot.machine import Machine
from tests.kit.boot.surroundings import REPO
from tests.kit.life import SERVICE, cli, is_up, standin, unit, until

UNIT = f"/etc/systemd/system/{SERVICE}.service"
FAULTS = f"/var/cache/{SERVICE}/standin"
MODEL = "通义千问-视觉"
PATIENCE = 300.0
SCHEMA = json.loads((REPO / "docs/status-schema.json").read_text())


@pytest.fixture(scope="module")
def machine(standin_wheels: Path) -> Iterator[Machine]:
    with Machine() as machine:
        cli(machine, "deploy", *standin(standin_wheels), "--served-model-name", MODEL)
        yield machine


@pytest.fixture(autouse=True)
def _it_serves(machine: Machine) -> Iterator[None]:
    yield
    machine.shell(f"rm -f {FAULTS}; systemctl reset-failed {SERVICE} || :; systemctl start {SERVICE}")


def status(machine: Machine) -> dict[str, Any]:
    done = machine.cli("status", "--json", check=False)
    found = dict(json.loads(done.stdout))
    assert done.returncode == (3 if found["active"].startswith(("inactive", "failed")) else 0)
    jsonschema.validate(found, SCHEMA)
    return found


def as_nobody(machine: Machine, *words: str) -> tuple[int, str, str]:
    command = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-m", "installer", *words)
    done = machine.run(*command, check=False)
    return done.returncode, done.stdout, done.stderr


# status (row 20 of the parity list: health, log, GPU watch, an alarm when unhealthy)


def test_status_shows_what_the_design_lists(machine: Machine) -> None:
    found = status(machine)
    assert found["ready"]
    assert found["listening"]
    assert found["problem"] is None
    assert found["model"] == MODEL
    assert found["kv_tokens"]
    assert found["load"]["waiting"] == 0.0
    assert [key.split()[0] for key in found["keys"]] == ["default", "probe"]
    assert found["last_changes"][0]["what"] == "deploy"
    screen = cli(machine, "status").out
    for label in ("service", "model", "context", "KV cache", "listens on", "memory", "keys", "changes", "load"):
        assert re.search(rf"^ *{label}  \S", screen, re.MULTILINE), label
    for row in cli(machine, "list", "--json").json:
        jsonschema.validate(row, SCHEMA)


@pytest.mark.parametrize(
    ("arrange", "clear", "says"),
    [
        (
            "mv /opt/vllm-install/engines /opt/away",
            "mv /opt/away /opt/vllm-install/engines",
            "is missing or not complete",
        ),
        (f"mv {UNIT} /root/unit", f"mv /root/unit {UNIT}; systemctl daemon-reload", "is gone"),
        ("chmod 0700 /opt/vllm-install", "chmod 0755 /opt/vllm-install", "may not use /opt/vllm-install"),
    ],
)
def test_status_says_why_it_is_down(machine: Machine, arrange: str, clear: str, says: str) -> None:
    machine.shell(f"systemctl stop {SERVICE}; {arrange}; systemctl daemon-reload; systemctl start {SERVICE} || :")
    try:
        found = status(machine)
        assert not found["ready"]
        assert says in found["problem"]["cause"]
        screen = machine.cli("status", check=False).stdout
        assert re.search(rf"^ *because  .*{says}", screen, re.MULTILINE)
        assert re.search(r"^ *do  sudo ", screen, re.MULTILINE)
        assert says in machine.cli("status", SERVICE, check=False).stdout
    finally:
        machine.shell(f"{clear}; systemctl reset-failed {SERVICE} || :; systemctl restart {SERVICE}")


@pytest.mark.parametrize("how", ["garbled", "missing"])
def test_metrics_that_cannot_be_read_are_no_error(machine: Machine, how: str) -> None:
    machine.write(FAULTS, f"metrics={how}")
    found = status(machine)
    assert found["ready"]
    if how == "missing":
        assert found["load"] is None
    assert cli(machine, "doctor").out == f"{SERVICE}: nothing is wrong\n"


def test_without_root_they_say_what_they_cannot_see(machine: Machine) -> None:
    code, out, err = as_nobody(machine, "status", "--json")
    assert code == 0, err
    jsonschema.validate(json.loads(out), SCHEMA)
    assert json.loads(out)["load"] is None
    code, out, err = as_nobody(machine, "doctor")
    assert "Traceback" not in err
    assert code == 0, out
    assert "not seen: not run as root" in err
    machine.shell(f"systemctl stop {SERVICE}")
    stopped = status(machine)
    assert (stopped["problem"]["id"], stopped["stage"]) == ("service-stopped", "")
    code, out, err = as_nobody(machine, "doctor", "--json")
    assert code == 8, out + err
    assert json.loads(out)["findings"][0]["id"] == "service-stopped"


def test_a_chinese_name_in_the_c_locale(machine: Machine) -> None:
    for locale, encoding in (("C", ""), ("POSIX", ""), ("C", "ascii"), ("C", "latin-1")):
        for verb in (("status",), ("doctor",), ("list",), ("logs", "-n", "50")):
            done = machine.run(
                sys.executable,
                "-m",
                "installer",
                *verb,
                env={"LC_ALL": locale, "PYTHONIOENCODING": encoding},
                check=False,
            )
            assert done.returncode == 0, done
            assert "Traceback" not in done.stderr


def test_ctrl_c_while_a_hung_engine_is_asked(machine: Machine) -> None:
    machine.write(FAULTS, "hang")
    with machine.start(sys.executable, "-m", "installer", "doctor") as process:

        def is_asking() -> bool:
            pid = machine.run("pgrep", "-f", "installer doctor", check=False).stdout.strip()
            return bool(pid) and f"pid={pid}," in machine.run("ss", "-Htnp", "dport = :8000").stdout

        until("the model is asked", is_asking, machine)
        code, out, err = interrupted(process)
    assert code == 130
    assert out == ""
    assert err.startswith("error: interrupted by SIGINT"), err


# status --watch


def reads(process: Popen[str], count: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline() for _ in range(count)]


def interrupted(process: Popen[str]) -> tuple[int, str, str]:
    """Ctrl-C: the whole foreground group gets it."""
    for child in psutil.Process(process.pid).children(recursive=True):  # all but nsenter, which is not part of it
        os.kill(child.pid, signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def test_watching_in_a_pipe_gives_a_line_for_every_look(machine: Machine) -> None:
    with machine.start(sys.executable, "-m", "installer", "status", "--watch") as process:
        first, second = reads(process, 2)
        code, _, err = interrupted(process)
    assert re.match(r"\d{4}-\d\d-\d\dT[\d:]+Z active running=0 waiting=0 cache=0 tokens/s=- ttft-p50=", first)
    assert re.search(r"tokens/s=\d", second)
    assert (code, err) == (130, "")


def test_watching_as_data_gives_an_object_on_every_line(machine: Machine) -> None:
    with machine.start(sys.executable, "-m", "installer", "status", "--watch", "--json") as process:
        frames = [json.loads(line) for line in reads(process, 2)]
        code, _, err = interrupted(process)
    assert [frame["has_metrics"] for frame in frames] == [True, True]
    assert set(frames[0]["first_token"]) == {"p50", "p90", "p99"}
    assert (code, err) == (130, "")


@pytest.mark.parametrize("columns", [20, 100])
def test_parity_row_20_watching_on_a_terminal(machine: Machine, columns: int) -> None:
    shown = watched(machine, columns, "status", "tokens/s")
    assert "视觉" in shown or columns == 20


def watched(machine: Machine, columns: int, verb: str, word: str) -> str:
    """What is on a terminal where somebody watches, until the word has come and a Ctrl-C has ended it in order."""
    watch = f"stty cols {columns} rows 40; exec {sys.executable} -m installer {verb} --watch"
    script = ("script", "--quiet", "--return", "--command", watch, "/dev/null")
    with machine.start(*script, env={"TERM": "xterm-256color"}) as process:
        plain = "".join(until_it_says(word, process))
        family = psutil.Process(process.pid).children(recursive=True)
        watching = next(each for each in family if "--watch" in words_of(each))
        watching.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "Traceback" not in plain + rest
    return plain


def words_of(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.NoSuchProcess):  # what it had asked systemctl for
        return list(process.cmdline())
    return []


def until_it_says(word: str, process: Popen[str]) -> Iterator[str]:
    """What a terminal shows, up to the line with the word."""
    assert process.stdout is not None
    for line in process.stdout:
        yield (plain := re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).strip("\r\n"))
        if word in plain:
            return
    pytest.fail(f"it ended and never said {word}")


# logs


def test_logs_pass_on_what_journalctl_shows(machine: Machine) -> None:
    machine.run("journalctl", "--sync")
    for words in (("-n", "5"), ("--since", "-1h"), ("--output=cat", "-n", "3"), ("-o", "short-iso", "-n", "2")):
        lines = cli(machine, "logs", *words).out.splitlines(keepends=True)
        ours = "".join(line for line in lines if not line.startswith(("    = ", "    > ")))
        theirs = machine.run("journalctl", "--unit", f"{SERVICE}.service", "--no-pager", *words).stdout
        assert ours == theirs, words
    assert cli(machine, "logs", "-n", "1", "--service", SERVICE).out == cli(machine, "logs", "-n1").out
    assert len(cli(machine, "logs").out.splitlines()) <= 201
    assert cli(machine, "logs", "--no-such-option", code=1).err


def test_a_recognised_line_is_explained_once(machine: Machine) -> None:
    words = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.02 GiB."
    machine.write(f"/var/cache/{SERVICE}/last-words", f"{words}\n{words}\n")
    machine.write(f"{UNIT}.d/once.conf", "[Service]\nRestart=no\n")
    machine.write(FAULTS, "last-words")
    machine.shell(f"systemctl daemon-reload; systemctl restart {SERVICE} || :")
    try:
        until("it has failed", lambda: not is_up(machine), machine)
        machine.run("journalctl", "--sync")  # its last words may be on their way to the journal
        out = cli(machine, "logs", "-n", "30").out
        assert out.count(words) == 2
        assert out.count("    = the GPU's memory did not suffice\n") == 1
        assert f"{words}\n    = the GPU" in out
        assert "    > sudo vllm-install deploy --service qwen3vl -- --max-num-seqs 64\n" in out
        assert "\x1b" not in out
        data = cli(machine, "logs", "-n", "30", "-o", "json").out
        assert all(json.loads(line) for line in data.splitlines())
        command = f"{sys.executable} -m installer logs -n 30"
        on_terminal = ("script", "--quiet", "--return", "--command", command, "/dev/null")
        assert "\x1b[33m    = the GPU" in machine.run(*on_terminal, env={"TERM": "xterm"}).stdout
        quiet = machine.run(*on_terminal, env={"TERM": "xterm", "NO_COLOR": "1"}).stdout
        assert "\x1b[33m" not in quiet
    finally:
        machine.shell(f"rm {UNIT}.d/once.conf; systemctl daemon-reload")


def test_following_ends_cleanly(machine: Machine) -> None:
    with machine.start(sys.executable, "-m", "installer", "logs", "-f", "-n", "1") as process:
        reads(process, 1)
        machine.shell(f"systemctl restart {SERVICE}")
        reads(process, 3)
        code, _, err = interrupted(process)
    assert (code, err) == (130, "")
    assert unit(machine, "ActiveState")["ActiveState"] == "active"
    assert machine.run("pgrep", "-x", "journalctl", check=False).stdout == ""


def test_a_reader_that_leaves_early_is_no_error(machine: Machine) -> None:
    ours = shlex.join([sys.executable, "-m", "installer", "logs", "-n", "100"])
    done = machine.shell(f"{ours} | head -n 1")
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""
