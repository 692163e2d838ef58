"""A deployed service whose weights are injured: no deploy starts it with them, and what it serves meanwhile goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from installer.base.host import Host
from tests.kit.boot.machine import Machine
from tests.kit.hub import Hub
from tests.kit.life import cli, main_pid, standin
from tests.kit.weights import REPO, SHARD, checkpoint, pull
from tests.weights.test_integrity import blob, flip


def test_wrong_bytes_are_noticed_before_the_service_starts(
    boot: Callable[..., Machine], server: Hub, standin_wheels: Path
) -> None:
    machine = boot()
    server.add(REPO, checkpoint())
    model = pull(server, Host(root=machine.at("/")))
    options = (*standin(standin_wheels)[2:], "--model", REPO)
    cli(machine, "deploy", *options)
    assert cli(machine, "deploy", *options, "--json").changes == []
    (listed,) = cli(machine, "models", "list", "--json").json
    assert listed["used_by"] == ["qwen3vl"]
    assert cli(machine, "models", "prune", "--yes").out == "nothing to change\n"

    flip(blob(Host(root=machine.at("/")), model))
    running = main_pid(machine)
    refused = cli(machine, "deploy", *options, "--context", "2048", code=5)
    assert f"{SHARD} of {REPO} has wrong bytes on the disk" in refused.err
    assert main_pid(machine) == running, "what runs is left alone"
    unit = machine.at("/etc/systemd/system/qwen3vl.service").read_text()
    assert "--max-model-len 1024" in unit
    (found,) = json.loads(cli(machine, "models", "verify", "--json", code=5).out)
    assert found["wrong"] == [SHARD]
