"""Two machines without a hub, each with a real sshd: weights that one has come to the other by ssh, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from installer.base.host import Host
from installer.weights import cache
from tests.kit.boot.hosts import hosts
from tests.kit.boot.machine import Machine
from tests.kit.hub import Hub
from tests.kit.life import ask, cli, is_up, standin
from tests.kit.weights import REPO, SHARD, checkpoint, pull
from tests.weights.test_integrity import blob, flip

RECORD = "/var/lib/vllm-install/qwen3vl/group.json"
FOLDER = Path("/var/cache/vllm-install/hub/models--Org--Tiny")


@pytest.fixture
def two() -> Iterator[list[Machine]]:
    with hosts(2) as (_, machines):
        yield machines


def test_a_host_gets_its_weights_from_another_and_no_byte_that_was_changed(
    two: list[Machine], server: Hub, standin_wheels: Path
) -> None:
    one, other = two
    here, there = (Host(root=machine.at("/")) for machine in two)
    server.add(REPO, checkpoint(size=20_000_000))
    model = pull(server, here)
    deploy = ("deploy", "--hosts", "gpu1,gpu2", *standin(standin_wheels)[2:], "--model", REPO)

    # What each would do is known before anything is there
    planned = cli(one, *deploy, "--dry-run").out
    assert f"gpu2: take {REPO} (38.2 MiB) from gpu1 into {FOLDER}" in planned
    assert not there.exists(FOLDER)

    # Root of gpu1 lies: other bytes, which it says were seen to be right
    lied = blob(here, model)
    flip(lied)
    cache.remember(FOLDER, [lied.name], [], here)
    refused = cli(one, *deploy, code=5)
    assert f"gpu2: {SHARD} of {REPO} came from gpu1 with wrong bytes" in refused.err
    assert not there.exists(FOLDER / "snapshots")
    assert not there.exists(FOLDER / "blobs" / lied.name)
    assert not one.at(RECORD).exists()
    assert not is_up(one)
    assert not is_up(other)

    # Mended, gpu2 has them from gpu1, and both serve; it is gpu2's own sum that says that they are right
    flip(lied)
    cache.remember(FOLDER, [lied.name], [], here)
    done = cli(one, *deploy)
    assert f"gpu2: weights of {REPO} from gpu1, " in done.err
    for machine in two:
        assert served(machine, done.key) == [REPO]
    (found,) = cli(other, "models", "verify", "--json").json
    assert (found["ok"], found["checked"]) == (True, len(model.files))

    # Whoever comes back with nothing gets them again
    cli(one, "hosts", "drain", "gpu2")
    cli(other, "uninstall", "--yes", "--purge", "--this-host-only")
    assert not there.exists(FOLDER)
    cli(one, "hosts", "join", "gpu2")
    assert served(other, done.key) == [REPO]


def served(machine: Machine, key: str) -> list[str]:
    return [each["id"] for each in ask(machine, "GET", "/v1/models", key).json["data"]]
