"""A service's life under a real systemd, with the stand-in engine: every verb, as users meet them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.boot.machine import Machine
from tests.kit.boot.snapshot import difference, snapshot
from tests.kit.life import (
    MODEL,
    ask,
    chat,
    cli,
    engine_pid,
    is_gone,
    is_up,
    main_pid,
    processes,
    serves,
    standin,
    unit,
    until,
    written,
)

UNIT = "/etc/systemd/system/qwen3vl.service"
DROP_IN = f"{UNIT}.d/override.conf"


@pytest.fixture(autouse=True)
def _nothing_stays(machine: Machine) -> Iterator[None]:
    """Each test begins with a bare host, and its end proves that `uninstall --purge` gives that back."""
    before = snapshot(machine.root)
    yield
    services = [row["service"] for row in cli(machine, "list", "--json").json]
    for service in services:
        cli(machine, "uninstall", "--yes", "--service", service, "--purge")
    is_gone(machine, before, services)


@pytest.fixture
def options(standin_wheels: Path) -> tuple[str, ...]:
    return standin(standin_wheels)


def test_parity_row_32_deployed_it_answers_to_the_printed_key_alone(machine: Machine, options: tuple[str, ...]) -> None:
    done = cli(machine, "deploy", *options)
    serves(machine, done.key)
    for path in ("/v1/models", "/v1/completions", "/invocations", "/tokenize", "/metrics", "/docs", "/nowhere"):
        assert ask(machine, "GET", path).status == 401, path
        assert ask(machine, "GET", path, key="sk-qwen3vl-" + "x" * 43).status == 401, path
    streamed = chat(machine, done.key, stream=True)
    assert streamed.status == 200
    assert streamed.body.rstrip().endswith("data: [DONE]")
    curl = re.search(r"curl .*\n.*-d .*", done.out)
    assert curl
    assert "choices" in json.loads(machine.shell(curl[0]).stdout)


def test_a_second_deploy_changes_nothing(machine: Machine, options: tuple[str, ...]) -> None:
    key = cli(machine, "deploy", *options).key
    pid, before = main_pid(machine), snapshot(machine.root)
    for args in (options, ()):
        assert cli(machine, "deploy", *args, "--json").json == {"service": "qwen3vl", "changes": [], "api_key": None}
    assert "nothing was changed" in cli(machine, "deploy").out
    assert cli(machine, "plan").out == "nothing to change\n"
    assert cli(machine, "plan", "--json").json == {"service": "qwen3vl", "changes": [], "gpus": []}
    assert difference(before, snapshot(machine.root)) == []
    assert main_pid(machine) == pid
    serves(machine, key)


@pytest.mark.parametrize("further", [(), ("--context", "2048", "--", "--max-num-seqs", "8")], ids=["plain", "flags"])
def test_the_plan_is_what_deploy_does_change_for_change(
    machine: Machine, options: tuple[str, ...], further: tuple[str, ...]
) -> None:
    before = snapshot(machine.root)
    planned = cli(machine, "plan", *options, "--json", *further).changes
    assert difference(before, snapshot(machine.root)) == []
    done = cli(machine, "deploy", *options, "--json", *further)
    assert [only_keys_open(change) for change in done.changes] == planned
    assert len(planned) > 10
    for change in written(done.changes):
        path = machine.at(change["path"])
        assert oct(path.stat().st_mode & 0o7777) == f"0o{change['mode'].lstrip('0')}", change
        assert change.get("secret") or path.read_text() == change["text"], change
    # What lies outside /etc/passwd and its kind is in the plan, or below a directory that is.
    named = [change["path"] for change in planned if "path" in change] + [
        "/opt/vllm-install/cache",
        "/var/cache/qwen3vl",
        "/var/lib/vllm-usage/qwen3vl",
    ]
    accounts = ("/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow", "/etc/subuid", "/etc/subgid")
    for line in difference(before, snapshot(machine.root)):
        touched = line.split()[1].rstrip(":")
        known = any(touched.startswith(name) or name.startswith(f"{touched}/") for name in named)
        assert known or touched in (*accounts, "/var/lib/vllm-install/qwen3vl/state.json") or ".wants" in touched, line


def only_keys_open(change: dict[str, Any]) -> dict[str, Any]:
    """The change with the digests of keys as a plan shows them that has not made any."""
    if "text" not in change or change["path"] != UNIT:
        return change
    return {**change, "text": re.sub(r"sha256:[0-9a-f]{64}", "sha256:MADE-BY-DEPLOY", change["text"])}


def test_a_plan_for_a_key_at_hand_leaves_only_the_probe_key_open(machine: Machine, options: tuple[str, ...]) -> None:
    key = "sk-my-own-5b8d0f3a9c-Xk2QzVwHj7RmTbNp"
    with_key = (*options, "--api-key-file", "-", "--json")
    planned = cli(machine, "plan", *with_key, stdin=key).changes
    done = cli(machine, "deploy", *with_key, stdin=key)
    assert done.json["api_key"] is None
    wanted, got = (next(c["text"] for c in changes if c.get("path") == UNIT) for changes in (planned, done.changes))
    assert re.sub("probe=sha256:[0-9a-f]{64}", "probe=sha256:MADE-BY-DEPLOY", got) == wanted
    assert key not in got
    serves(machine, key)


def test_what_is_shown_is_what_runs(machine: Machine, options: tuple[str, ...]) -> None:
    cli(machine, "deploy", *options)
    shown = cli(machine, "status", "--json").json
    expected = {
        "service": "qwen3vl", "active": "active (running)", "pid": main_pid(machine), "restarts": 0, "enabled": True,
        "model": MODEL, "engine": "cpu", "vllm_version": "0.32.0", "context": 1024, "pending": None,
        "address": "http://0.0.0.0:8000",
    }  # fmt: skip
    assert {name: shown[name] for name in expected} == expected
    assert shown["last_changes"][0]["outcome"] == "proved"
    assert cli(machine, "list", "--json").json == [
        {**shown, "memory": cli(machine, "list", "--json").json[0]["memory"]}
    ]
    assert re.search(
        r"^qwen3vl +active \(running\) +http://0.0.0.0:8000 +builtin:tiny$", cli(machine, "list").out, re.M
    )
    assert "vLLM 0.32.0 (cpu)" in cli(machine, "status").out
    assert "Starting vLLM server" in cli(machine, "logs", "--no-pager").out


def test_a_changed_setting_restarts_and_serves(machine: Machine, options: tuple[str, ...]) -> None:
    key = cli(machine, "deploy", *options).key
    pid = main_pid(machine)
    done = cli(machine, "deploy", "--context", "2048", "--json")
    assert [change.get("path", change["kind"]) for change in done.changes] == [
        "/etc/vllm-install/qwen3vl.env", UNIT, "handover",
    ]  # fmt: skip
    assert main_pid(machine) != pid
    assert ask(machine, "GET", "/v1/models", key).json["data"][0]["max_model_len"] == 2048
    serves(machine, key)
    assert cli(machine, "plan", "--json").changes == []
    assert cli(machine, "status", "--json").json["context"] == 2048


def test_an_edited_settings_file_is_what_deploy_goes_by(machine: Machine, options: tuple[str, ...]) -> None:
    key = cli(machine, "deploy", *options).key
    settings = machine.at("/etc/vllm-install/qwen3vl.env")
    settings.write_text(settings.read_text() + "\n# Our longest prompts\nMAX_MODEL_LEN=4096\n")
    cli(machine, "deploy")
    assert ask(machine, "GET", "/v1/models", key).json["data"][0]["max_model_len"] == 4096
    assert "# Our longest prompts\nMAX_MODEL_LEN=4096\n" in settings.read_text()


def test_systemctl_restarts_and_stops_it_and_deploy_starts_it(machine: Machine, options: tuple[str, ...]) -> None:
    key = cli(machine, "deploy", *options).key
    pid = main_pid(machine)
    machine.run("systemctl", "restart", "qwen3vl")  # returns when the model has answered
    assert main_pid(machine) != pid
    serves(machine, key)
    machine.run("systemctl", "stop", "qwen3vl")
    assert processes(machine) == {}
    assert unit(machine, "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    done = cli(machine, "deploy", "--json")
    assert done.changes == [{"kind": "restart", "unit": "qwen3vl.service"}]
    assert done.json["api_key"] is None
    serves(machine, key)


def test_what_is_written_to_the_host_does_not_depend_on_the_language(
    machine: Machine, options: tuple[str, ...]
) -> None:
    found = []
    for language in ("en", "zh_CN"):
        cli(machine, "--lang", language, "deploy", *options)
        cli(machine, "--lang", language, "set-context", "2048")
        cli(machine, "--lang", language, "set", "LISTEN_HOST=192.0.2.1", code=6)
        cli(machine, "--lang", language, "set-apikey", "--keep-old", "1h")
        cli(machine, "--lang", language, "rollback")
        shown = cli(machine, "--lang", language, "status", "--json").json
        found.append(host_texts(machine) | {"last_changes": shown["last_changes"][2]["outcome"]})
        cli(machine, "uninstall", "--yes", "--purge")
    english, chinese = found
    assert "undone: the successor of qwen3vl.service did not come up" in english["last_changes"]
    assert english == chinese


def host_texts(machine: Machine) -> dict[str, str]:
    """What the tool wrote, but for keys and times."""
    paths = ("/etc/vllm-install/qwen3vl.env", UNIT, "/var/lib/vllm-install/qwen3vl/state.json")
    always_new = re.compile(r"[0-9a-f]{64}|\d{4}-\d\d-\d\dT[\d:]+Z")
    return {path: always_new.sub("NEW", machine.at(path).read_text()) for path in paths}


def test_a_killed_engine_comes_back(machine: Machine, options: tuple[str, ...]) -> None:
    key = cli(machine, "deploy", *options).key
    pid = main_pid(machine)
    machine.run("kill", "-KILL", str(engine_pid(machine)))
    until("another main process", lambda: main_pid(machine) not in (0, pid) and is_up(machine), machine)
    serves(machine, key)
    assert cli(machine, "plan", "--json").changes == []
    assert cli(machine, "status", "--json").json["restarts"] == 1


def test_it_comes_up_with_the_host(machine: Machine, options: tuple[str, ...]) -> None:
    key = cli(machine, "deploy", *options).key
    machine.reboot()
    until("the service is up", lambda: is_up(machine), machine)
    serves(machine, key)
    assert cli(machine, "deploy", "--json").changes == []


def test_two_services_share_an_engine_until_the_last_one_goes(machine: Machine, options: tuple[str, ...]) -> None:
    one = cli(machine, "deploy", *options, "--service", "one").key
    second = cli(machine, "deploy", *options, "--service", "two", "--port", "8001", "--json")
    kinds = [change["kind"] for change in second.changes]
    assert kinds.count("write") == 4  # account, settings, probe key, unit: programs, slice and weights are there
    assert set(kinds) == {"write", "run", "restart"}
    two = second.json["api_key"]
    assert chat(machine, one, 8001).status == 401
    assert [row["service"] for row in cli(machine, "list", "--json").json] == ["one", "two"]
    pid = main_pid(machine, "two")
    cli(machine, "uninstall", "--yes", "--service", "one", "--purge")
    assert main_pid(machine, "two") == pid
    serves(machine, two, 8001)
    assert cli(machine, "deploy", "--service", "two", "--json").changes == []
    machine.run("systemctl", "restart", "two")
    serves(machine, two, 8001)


def test_uninstall_without_purge_keeps_the_weights_alone_and_says_how_they_go(
    machine: Machine, options: tuple[str, ...]
) -> None:
    before = snapshot(machine.root)
    cli(machine, "deploy", *options)
    said = cli(machine, "uninstall", "--yes").out
    left = [line.split()[1] for line in difference(before, snapshot(machine.root))]
    assert left
    assert [path for path in left if not path.startswith("/var/cache/vllm-install")] == []
    command = re.search(r"the weights stay: vllm-install (.+) removes", said)
    assert command, said
    weights = machine.at("/var/cache/vllm-install/builtin/tiny")
    assert weights.exists()
    cli(machine, *command[1].split(), "--yes")
    assert not weights.exists()
    cli(machine, "deploy", *options)


def test_the_admins_drop_in_outlives_every_verb(machine: Machine, options: tuple[str, ...]) -> None:
    text = "[Service]\nEnvironment=ADMIN=was-here\n"
    machine.write(DROP_IN, text)
    try:
        key = cli(machine, "deploy", *options).key
        cli(machine, "deploy", "--context", "2048")
        assert "ADMIN=was-here" in machine.run("cat", f"/proc/{main_pid(machine)}/environ").stdout.split("\0")
        serves(machine, key)
        assert cli(machine, "deploy", "--json").changes == []
        cli(machine, "uninstall", "--yes", "--purge")
        assert machine.at(DROP_IN).read_text() == text
    finally:
        machine.shell(f"rm -r {UNIT}.d; systemctl daemon-reload")
