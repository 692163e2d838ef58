"""Hand-written deployments in a booted machine: taken over with their key, port and model id, or left as they were."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from installer.base.host import Host
from installer.base.report import Report
from installer.model import builtin
from tests.booted.test_kill import cut, points_of
from tests.kit.boot.machine import Machine
from tests.kit.boot.snapshot import difference, snapshot
from tests.kit.boot.surroundings import REPO
from tests.kit.life import Outcome, ask, cli, is_gone, main_pid, unit, until

FIXTURES = REPO / "tests/fixtures/adopt"
S4_KEY = "sk-qwen-3f0aKq7ZpVn2RtYx8LmB4cWd6EhJ1sUg5Ti9oAeQyXw"
S4_MODEL = "Qwen/Qwen3-VL-8B-Instruct"
UNIT = "/etc/systemd/system/qwen3vl.service"
STATE = "/var/lib/vllm-install/qwen3vl"
ENV = "PORT=8000\nMAX_MODEL_LEN=2048\n"
# What the host ran before: a server that answers like the old one, with the key in its arguments for all to see.
OLD_VLLM = f"""#!{sys.executable}
import http.server, sys
port, key = (sys.argv[sys.argv.index(flag) + 1] for flag in ("--port", "--api-key"))
class Old(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        good = self.headers.get("Authorization") == f"Bearer {{key}}"
        self.send_response(200 if good else 401); self.end_headers(); self.wfile.write(b"old")
http.server.HTTPServer.allow_reuse_address = True
http.server.HTTPServer(("", int(port)), Old).serve_forever()
"""


@pytest.fixture(autouse=True)
def _bare(machine: Machine) -> Iterator[None]:
    """Each test begins with a bare host; what a test made itself goes, what the tool made has to be gone by then."""
    before = snapshot(machine.root)
    yield
    for row in cli(machine, "list", "--json").json:
        cli(machine, "uninstall", "--yes", "--service", row["service"], "--purge")
    for name in ("qwen3vl", "old-llm"):
        machine.shell(f"systemctl disable --now {name} 2>/dev/null || :")
        machine.at(f"/etc/systemd/system/{name}.service").unlink(missing_ok=True)
        shutil.rmtree(machine.at(f"/etc/systemd/system/{name}.service.d"), ignore_errors=True)
    # Downloads stay after a failure, and an ejected service is not ours to remove.
    for made in ("/opt/qwen3vl", "/data", "/srv/agent", "/srv/llm", "/opt/vllm-install", "/var/cache/vllm-install"):
        shutil.rmtree(machine.at(made), ignore_errors=True)
    machine.shell("systemctl daemon-reload; systemctl reset-failed")
    assert not (left := difference(before, snapshot(machine.root))), left
    is_gone(machine, before)


def options(wheels: Path) -> tuple[str, ...]:
    return ("ENGINE=cpu", f"FIND_LINKS={wheels}", "OFFLINE=yes")


def put_model(machine: Machine, path: str) -> None:
    builtin.MakeBuiltin(Path(path)).apply(Host(machine.root), Report())


def put_old(machine: Machine, name: str = "qwen3vl") -> None:
    """The deployment of fixtures/adopt/qwen3vl.service, running."""
    put_model(machine, "/data/models/Qwen3-VL-8B-Instruct")
    machine.write("/opt/qwen3vl/venv/bin/vllm", OLD_VLLM, 0o755)
    machine.write("/opt/qwen3vl/.env", ENV, 0o600)
    machine.write(f"/etc/systemd/system/{name}.service", (FIXTURES / "qwen3vl.service").read_text())
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "enable", "--now", name)
    until("the old service answers", lambda: status(machine, S4_KEY) == 200, machine)


def status(machine: Machine, key: str, port: int = 8000) -> int:
    try:
        return ask(machine, "GET", "/v1/models", key, port=port).status
    except AssertionError:
        return 0


def answers(machine: Machine, key: str, model: str, port: int = 8000) -> None:
    assert ask(machine, "GET", "/v1/models", port=port).status == 401
    assert ask(machine, "GET", "/metrics", port=port).status == 401
    body = {"model": model, "max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}]}
    answer = ask(machine, "POST", "/v1/chat/completions", key, body, port)
    assert answer.status == 200, answer


def is_nowhere(machine: Machine, key: str, *outcomes: Outcome) -> None:
    """The key is in no file of ours, no unit, no argument, no journal line of the new service, and in nothing said."""
    for outcome in outcomes:
        assert key not in outcome.out + outcome.err
    ours = ("/etc/systemd/system", "/etc/vllm-install", "/opt/vllm-install", "/run/qwen3vl", "/var/cache/qwen3vl")
    ours += ("/var/lib/vllm-usage",)
    found = machine.run("grep", "-rlF", "-e", key, *ours, f"{STATE}/state.json", check=False).stdout
    assert found == ""
    assert key not in machine.run("ps", "ax", "-o", "args").stdout
    assert key not in machine.run("systemctl", "show", "qwen3vl").stdout


def is_back(machine: Machine, text: str, name: str = "qwen3vl") -> None:
    """The old deployment serves as if nothing had been."""
    until("the old service answers", lambda: status(machine, S4_KEY) == 200, machine)
    assert ask(machine, "GET", "/v1/models", S4_KEY).body.strip() == "old"
    assert machine.at(f"/etc/systemd/system/{name}.service").read_text() == text
    assert unit(machine, "UnitFileState", "ActiveState", service=name) == {
        "UnitFileState": "enabled", "ActiveState": "active",
    }  # fmt: skip
    assert not machine.at(STATE).exists()


def test_the_cloud_hosts_unit_is_taken_over_with_its_key(machine: Machine, standin_wheels: Path) -> None:
    put_old(machine)
    before, pid = snapshot(machine.root), main_pid(machine)
    shown = cli(machine, "adopt", "qwen3vl", *options(standin_wheels), code=3)
    assert (difference(before, snapshot(machine.root)), main_pid(machine)) == ([], pid)
    assert "with --yes" in shown.err
    for line in (
        "MODEL_NAME=/data/models/Qwen3-VL-8B-Instruct", f"SERVED_MODEL_NAME={S4_MODEL}", "MAX_MODEL_LEN=2048",
        "the API key stays the same", f"the model id is {S4_MODEL}, as before", "--trust-remote-code is dropped",
        "--disable-log-requests is dropped", "-User=root", "+User=vllm-qwen3vl", "CUDA_VISIBLE_DEVICES=0",
    ):  # fmt: skip
        assert line in shown.out, line
    done = cli(machine, "adopt", "qwen3vl", *options(standin_wheels), "--yes", "--json")
    assert (done.json["taken_over"], done.json["api_key"], done.json["unit"]) == (True, None, "qwen3vl.service")
    answers(machine, S4_KEY, S4_MODEL)
    is_nowhere(machine, S4_KEY, shown, done)
    variables = machine.run("cat", f"/proc/{main_pid(machine)}/environ").stdout.split("\0")
    assert {"CUDA_VISIBLE_DEVICES=0", "VLLM_LOGGING_LEVEL=INFO"} <= set(variables)
    kept = machine.at(f"{STATE}/adopted-from{UNIT}")
    assert (kept.read_text(), kept.stat().st_mode & 0o777) == ((FIXTURES / "qwen3vl.service").read_text(), 0o600)
    assert cli(machine, "deploy", "--json").changes == []
    cli(machine, "set-context", "1024")
    answers(machine, S4_KEY, S4_MODEL)
    assert "managed by vllm-install already" in cli(machine, "adopt", "qwen3vl", code=3).err
    machine.reboot()
    until("it serves after a reboot", lambda: status(machine, S4_KEY) == 200, machine)
    cli(machine, "uninstall", "--yes", "--purge")
    assert machine.at(UNIT).read_text() == (FIXTURES / "qwen3vl.service").read_text()
    assert unit(machine, "UnitFileState", "ActiveState") == {"UnitFileState": "disabled", "ActiveState": "inactive"}


def test_a_unit_of_another_name_stands_back_and_both_its_keys_work_on(machine: Machine, standin_wheels: Path) -> None:
    put_old(machine, "old-llm")
    second, path = "sk-second-e2f7089b41-Hn4RcXvZo8T", machine.at("/etc/systemd/system/old-llm.service")
    path.write_text(path.read_text().replace(f'"{S4_KEY}"', f'"{S4_KEY}" {second}'))
    machine.write("/etc/systemd/system/old-llm.service.d/more.conf", "[Service]\nEnvironment=HF_TOKEN=hf_abcdefghij\n")
    machine.run("systemctl", "daemon-reload")
    done = cli(machine, "adopt", "old-llm", "--service", "qwen3vl", *options(standin_wheels), "--yes")
    assert "HF_TOKEN" in done.out
    assert "hf_abcdefghij" not in done.out + done.err
    answers(machine, S4_KEY, S4_MODEL)
    answers(machine, second, S4_MODEL)
    assert "old-llm.service still holds what it held" in done.out
    assert second not in done.out + done.err
    state = unit(machine, "UnitFileState", "ActiveState", service="old-llm")
    assert state == {"UnitFileState": "disabled", "ActiveState": "inactive"}
    assert machine.at("/etc/systemd/system/old-llm.service.d/more.conf").exists()


@pytest.mark.parametrize("name", ["qwen3vl", "old-llm"])
def test_what_does_not_prove_itself_gives_the_place_back(machine: Machine, standin_wheels: Path, name: str) -> None:
    put_old(machine, name)
    drop_in = f"/etc/systemd/system/{name}.service.d/nice.conf"
    machine.write(drop_in, "[Service]\nNice=5\n")
    machine.run("systemctl", "daemon-reload")
    text = machine.at(f"/etc/systemd/system/{name}.service").read_text()
    wrong = (*options(standin_wheels), "VLLM_ARGS=--additional-config die-at-start=2")
    failed = cli(machine, "adopt", name, *wrong, "--yes", code=6)
    assert f"{name}.service is back as it was" in failed.err
    is_back(machine, text, name)
    assert machine.at(drop_in).read_text() == "[Service]\nNice=5\n"
    assert S4_KEY not in failed.out + failed.err


@pytest.mark.parametrize("name", ["qwen3vl", "old-llm"])
def test_the_next_command_settles_an_adoption_that_was_cut_off(
    machine: Machine, standin_wheels: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    put_old(machine, name)
    text = machine.at(f"/etc/systemd/system/{name}.service").read_text()
    args = ("adopt", name, "--service", "qwen3vl", *options(standin_wheels), "--yes")

    def start_over() -> None:
        """The old service runs, and the engine is there, as after every adoption that is undone."""
        machine.run("systemctl", "enable", "--now", name)
        cli(machine, *args[:-1], "VLLM_ARGS=--additional-config die-at-start=2", "--yes", code=6)

    start_over()
    points = points_of(machine, *args)
    cli(machine, "uninstall", "--yes")
    start_over()
    follow = (
        ("adopt", name, "--service", "qwen3vl", *options(standin_wheels)),
        ("uninstall", "--yes"),
        ("set", "PORT=8001"),
    )
    wanted = [point for point in points if point.startswith(("done", "save")) or point.endswith(":1")]
    for number, point in enumerate(wanted):
        cut(machine, point, *args)
        pending = machine.at(f"{STATE}/state.json").exists() and json.loads(
            machine.at(f"{STATE}/state.json").read_text()
        )
        if pending and pending["proved"]:
            cli(machine, "uninstall", "--yes")
            start_over()
            continue
        command = follow[number % len(follow)] if pending else follow[0]
        done = machine.cli(*command, check=False)
        assert ("cut off" in done.stderr) == bool(pending and command[0] != "uninstall"), (point, command, done)
        shutil.rmtree(machine.at(STATE).parent, ignore_errors=True) if not pending else None
        is_back(machine, text, name)
    with capsys.disabled():
        print(f"\nadopt {name}: {len(wanted)} faults injected, {len(wanted)} recovered")
    assert len(wanted) >= 10


def test_the_agents_script_is_adopted_and_its_process_is_left_to_the_admin(
    machine: Machine, standin_wheels: Path
) -> None:
    key = "sk-agent-V9dK2mXq7RtB4nYw8LpZ3cFh6GjS1aUe5TiOoE"
    args = ("adopt", "/srv/agent/serve.sh", "--service", "agent")
    put_model(machine, "/srv/agent/models/Qwen2.5-7B-Instruct")
    machine.write("/srv/agent/serve.sh", (FIXTURES / "agent-serve.sh").read_text(), 0o755)
    machine.write("/srv/agent/vllm", OLD_VLLM, 0o755)
    with machine.start("/srv/agent/vllm", "serve", "--port", "8001", "--api-key", key) as process:
        until("the old server answers", lambda: status(machine, key, 8001) == 200, machine)
        refused = cli(machine, *args, *options(standin_wheels), "--yes", code=3)
        assert "port 8001 is taken" in refused.err
        assert status(machine, key, 8001) == 200
        os.killpg(process.pid, signal.SIGKILL)
    done = cli(machine, *args, *options(standin_wheels), "--yes")
    answers(machine, key, "qwen2.5-7b", 8001)
    is_nowhere(machine, key, done)
    words = machine.at("/etc/systemd/system/agent.service").read_text()
    assert "--tool-call-parser hermes" in words
    assert "--max-num-seqs=16" in words
    # 2k is 2000 for vLLM, and stays so.
    assert ask(machine, "GET", "/v1/models", key, port=8001).json["data"][0]["max_model_len"] == 2000


def test_parity_row_16_the_compose_service_with_its_old_environment_names(
    machine: Machine, standin_wheels: Path
) -> None:
    key = "sk-back-Z8kQ2mXq7RtB4nYw9LpZ3cFh6GjS1aUe5Ti"
    put_model(machine, "/srv/llm/models/qwen2-7b")
    machine.write("/srv/llm/docker-compose.yml", (FIXTURES / "docker-compose.yml").read_text())
    machine.write(
        "/srv/llm/.env",
        f"LLM_KEY={key}\nMODEL_NAME=qwen2-7b\nMAX_MODEL_LEN=2048\nGPU_MEMORY_UTILIZATION=0.2\nTENSOR_PARALLEL_SIZE=1\n",
    )
    done = cli(machine, "adopt", "/srv/llm/docker-compose.yml", *options(standin_wheels), "--yes", "--json")
    settings = done.json["settings"]
    expected = {"MAX_MODEL_LEN": "2048", "GPU_MEMORY_UTILIZATION": "0.2", "LISTEN_HOST": "127.0.0.1", "PORT": "11435"}
    assert {name: settings[name] for name in expected} == expected
    assert "the model id is qwen2-7b, local, as before" in done.json["clients"]
    for name in ("qwen2-7b", "local"):
        answers(machine, key, name, 11435)
    is_nowhere(machine, key, done)
    names = machine.at("/etc/vllm-install/qwen3vl.env").read_text()
    assert "\nMAX_MODEL_LEN=2048\n" in names
    assert "\nGPU_MEMORY_UTILIZATION=0.2\n" in names


def test_an_ejection_that_was_cut_off_is_undone_or_completed(machine: Machine, standin_wheels: Path) -> None:
    deploy = ("deploy", "--model", "builtin:tiny", "--engine", "cpu", "--find-links", str(standin_wheels), "--offline")
    key = cli(machine, *deploy).key
    pid, text = main_pid(machine), machine.at(UNIT).read_text()
    for number, point in enumerate(("begin:1", "done:1", "done:2", "done:3", "done:4")):
        cut(machine, point, "eject", "--yes")
        answers(machine, key, "builtin:tiny")
        done = cli(machine, "set-apikey", f"sk-eject-{number}-Gx7QmZr2TkVw9LpBn4Hd", "--name", "other")
        assert "eject was cut off; undoing it first" in done.err, point
        assert cli(machine, "deploy", "--json").changes == [], point
        assert "UNIT_DIGEST" in machine.at(UNIT).read_text()
    assert main_pid(machine) == pid, "nothing of this needs a restart"
    assert machine.at(UNIT).read_text().count("\n") == text.count("\n")
    assert not machine.at("/etc/vllm-qwen3vl.probe-key").exists()


def test_an_ejection_that_was_cut_off_at_its_very_end_is_completed_by_a_rerun(
    machine: Machine, standin_wheels: Path
) -> None:
    put_old(machine)
    cli(machine, "adopt", "qwen3vl", *options(standin_wheels), "--yes")
    pid = main_pid(machine)
    cut(machine, "done:5", "eject", "--yes")  # the service is the admin's, and what we knew of it is still there
    assert machine.at(f"{STATE}/adopted-from{UNIT}").exists()
    cli(machine, "eject", "--yes")
    assert not machine.at(STATE).exists()
    assert main_pid(machine) == pid
    assert "manages no service" in cli(machine, "eject", "--yes", code=3).err
    end_ejected(machine)


def test_an_ejected_service_needs_none_of_us(machine: Machine, standin_wheels: Path) -> None:
    put_old(machine)
    cli(machine, "adopt", "qwen3vl", *options(standin_wheels), "--yes")
    pid = main_pid(machine)
    # Another service comes and goes, with all that is shared: what the ejected one runs on has to stay.
    assert S4_KEY in machine.at(f"{STATE}/adopted-from{UNIT}").read_text()
    cli(machine, "eject", "--yes")
    assert main_pid(machine) == pid
    assert not machine.at(STATE).exists(), "the old unit, and so the key in clear, was kept there"
    answers(machine, S4_KEY, S4_MODEL)
    assert cli(machine, "list", "--json").json == []
    other = ("deploy", "--service", "other", "--model", "builtin:tiny", "--engine", "cpu", "--port", "8002",
             "--find-links", str(standin_wheels), "--offline")  # fmt: skip
    cli(machine, *other)
    cli(machine, "uninstall", "--yes", "--service", "other", "--purge")
    machine.run("systemctl", "restart", "qwen3vl")
    answers(machine, S4_KEY, S4_MODEL)
    text = machine.at(UNIT).read_text()
    assert "VLLM_INSTALL" not in text
    assert "/var/lib/vllm-install" not in text
    # As the head of the unit says: a key put in by hand works after a reload.
    mine = "sk-mine-5b8d0f3a9c-Xk2QzVwHj7RmTbNp"
    machine.at(UNIT).write_text(re.sub("--api-key default=\\S+", f"--api-key {mine}", text))
    machine.shell("systemctl daemon-reload && systemctl reload qwen3vl")
    assert (status(machine, mine), status(machine, S4_KEY)) == (200, 401)
    end_ejected(machine)


def test_an_ejected_service_is_adopted_again(machine: Machine, standin_wheels: Path) -> None:
    deploy = ("deploy", "--model", "builtin:tiny", "--engine", "cpu", "--find-links", str(standin_wheels), "--offline")
    before = snapshot(machine.root)
    key = cli(machine, *deploy).key
    guest = cli(machine, "set-apikey", "--name", "guest", "--role", "metrics").key
    settings = cli(machine, "status", "--json").json
    cli(machine, "eject", "--yes")
    cli(machine, "adopt", "qwen3vl", *options(standin_wheels), "--yes")  # what runs is what is wanted, but set aside
    answers(machine, key, "builtin:tiny")
    cli(machine, "eject", "--yes")
    unit_text, probe = machine.at(UNIT).read_text(), machine.at("/etc/vllm-qwen3vl.probe-key").read_text()
    # One that fails leaves it as it was, the key of its watcher too.
    machine.write("/var/cache/qwen3vl/standin", "refuse-context=2000")
    failed = cli(machine, "adopt", "qwen3vl", "MAX_MODEL_LEN=4096", *options(standin_wheels), "--yes", code=6)
    assert "qwen3vl.service is back as it was" in failed.err
    assert machine.at(UNIT).read_text() == unit_text
    assert machine.at("/etc/vllm-qwen3vl.probe-key").read_text() == probe
    assert not machine.at(STATE).exists()
    answers(machine, key, "builtin:tiny")
    machine.at("/var/cache/qwen3vl/standin").unlink()
    shown = cli(machine, "adopt", "qwen3vl", *options(standin_wheels), code=3).out
    for line in ("the API keys stay as they are", "MODEL_NAME=builtin:tiny", "the model id is builtin:tiny, as before"):
        assert line in shown, shown
    done = cli(machine, "adopt", "qwen3vl", *options(standin_wheels), "--yes")
    assert "API key  " not in done.out
    answers(machine, key, "builtin:tiny")
    assert ask(machine, "GET", "/metrics", guest).status == 200
    now = cli(machine, "status", "--json").json
    for shown in (now, settings):
        shown["keys"] = [each for each in shown["keys"] if not each.startswith("probe ")]  # the watcher has a new one
    assert {name: now[name] for name in ("model", "context", "keys")} == {
        name: settings[name] for name in ("model", "context", "keys")
    }
    assert not machine.at("/etc/vllm-qwen3vl.probe-key").exists()
    assert cli(machine, "deploy", "--json").changes == []
    cli(machine, "uninstall", "--purge", "--yes")
    # Whoever ejected it was given the directory, too: nothing remembers that the tool had made it.
    machine.shell("rmdir --ignore-fail-on-non-empty /etc/sysusers.d")
    is_gone(machine, before)


def test_adopt_takes_the_units_name_and_says_what_it_costs(machine: Machine, standin_wheels: Path) -> None:
    put_old(machine, "old-llm")
    shown = cli(machine, "adopt", "old-llm", *options(standin_wheels), code=3).out
    assert "+++ /etc/systemd/system/old-llm.service" in shown
    assert "old-llm.service may take 1min 30s to stop" in shown
    # Of the difference only secrets are left out.
    assert S4_KEY not in shown
    for line in ("MAX_MODEL_LEN", "0.0.0.0", "CUDA_VISIBLE_DEVICES=0"):
        assert line in shown, line
    assert "[address]" not in shown
    cli(machine, "adopt", "old-llm", *options(standin_wheels), "--yes")
    assert [row["service"] for row in cli(machine, "list", "--json").json] == ["old-llm"]
    done = cli(machine, "uninstall", "old-llm", "--yes")
    assert (
        "old-llm.service is as it was before adopt, and stopped: sudo systemctl enable --now old-llm.service"
        in done.out
    )
    machine.run("systemctl", "enable", "--now", "old-llm.service")
    until("the old service answers", lambda: status(machine, S4_KEY) == 200, machine)


def end_ejected(machine: Machine) -> None:
    """What becomes of an ejected service is its admin's business."""
    machine.shell("systemctl disable --now qwen3vl; userdel vllm-qwen3vl")
    for left in ("/etc/systemd/system/vllm.slice", "/etc/sysusers.d/vllm-install-qwen3vl.conf",
                 "/etc/vllm-qwen3vl.probe-key", "/var/cache/qwen3vl", "/var/lib/vllm-usage"):  # fmt: skip
        machine.run("rm", "-r", left)
    machine.shell("rmdir --ignore-fail-on-non-empty /etc/sysusers.d")
