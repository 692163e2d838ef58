"""Whatever happens to weights between their download and the next deploy is noticed before the service starts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from installer.base.host import Host
from installer.base.report import Report
from installer.spec.model import Model, ModelError
from tests.kit.hub import Hub
from tests.kit.weights import REPO, SHARD, WANTED, checkpoint, due, pull, served


def blob(host: Host, model: Model) -> Path:
    return (host.at(model.path) / SHARD).resolve()


def flip(path: Path) -> None:
    middle = path.stat().st_size // 2
    with path.open("r+b") as file:
        file.seek(middle)
        byte = file.read(1)
        file.seek(middle)
        file.write(bytes([byte[0] ^ 1]))


def flip_and_hide(path: Path) -> None:
    before = path.stat()
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def truncate(path: Path) -> None:
    os.truncate(path, 1000)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def replace(path: Path) -> None:
    other = path.with_name("other")
    shutil.copy(path, other)
    flip(other)
    other.replace(path)


def point_elsewhere(path: Path) -> None:
    """The link shows the second shard, which is as long, under the name of the first."""
    (link,) = path.parents[1].glob(f"snapshots/*/{SHARD}")
    (second,) = path.parents[1].glob(f"snapshots/*/{SHARD.replace('00001-of', '00002-of')}")
    link.unlink()
    link.symlink_to(second.readlink())


def drop_link(path: Path) -> None:
    (link,) = path.parents[1].glob(f"snapshots/*/{SHARD}")
    link.unlink()


INJURIES = [flip, flip_and_hide, truncate, grow, replace, Path.unlink, point_elsewhere, drop_link]


@pytest.fixture
def model(server: Hub, host: Host) -> Model:
    server.add(REPO, checkpoint())
    return pull(server, host)


def test_a_fresh_download_needs_no_second_look(host: Host, model: Model) -> None:
    assert due(model, host) == []


@pytest.mark.parametrize("injure", INJURIES, ids=lambda injure: injure.__name__)
def test_an_injured_file_is_noticed_and_only_it_is_fetched(
    server: Hub, host: Host, model: Model, injure: Callable[[Path], None]
) -> None:
    injured = blob(host, model)
    injure(injured)
    sent = server.sent
    (change,) = due(model, host)
    change.apply(host, Report())
    assert served(host, model) == {name: checkpoint()[name] for name in WANTED}
    assert server.sent - sent == (0 if injure in (point_elsewhere, drop_link) else len(checkpoint()[SHARD]))
    assert due(model, host) == []


@pytest.mark.parametrize("injure", INJURIES[:6], ids=lambda injure: injure.__name__)
def test_offline_an_injured_file_is_an_error_and_nobody_is_asked(
    server: Hub, host: Host, model: Model, injure: Callable[[Path], None]
) -> None:
    injure(blob(host, model))
    asked = len(server.requests)
    (change,) = due(model, host, offline=True)
    with pytest.raises(ModelError, match=r"offline.*missing or have wrong bytes"):
        change.apply(host, Report())
    assert len(server.requests) == asked
    assert due(model, host, offline=True), "it stays noticed"


def test_a_service_that_reads_the_wrong_bytes_keeps_its_file(server: Hub, host: Host, model: Model) -> None:
    path = blob(host, model)
    flip(path)
    wrong = path.read_bytes()
    with path.open("rb") as mapped:
        (change,) = due(model, host)
        change.apply(host, Report())
        assert mapped.read() == wrong
    assert path.read_bytes() == checkpoint()[SHARD]


def test_touching_a_file_costs_a_look_and_no_transfer(server: Hub, host: Host, model: Model) -> None:
    blob(host, model).touch()
    sent = server.sent
    (change,) = due(model, host)
    assert change.describe().startswith("check ")
    change.apply(host, Report())
    assert (server.sent, due(model, host)) == (sent, [])


@pytest.mark.parametrize("content", ["", "[]", "{", '{"0": 1}'])
def test_without_the_notes_of_earlier_looks_everything_is_looked_at(host: Host, model: Model, content: str) -> None:
    notes = host.at(model.folder / "checked.json")
    assert notes.exists()
    notes.write_text(content)
    (change,) = due(model, host)
    change.apply(host, Report())
    assert due(model, host) == []
