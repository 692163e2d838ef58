"""Several connections within one file: as many as asked for, as few as the server wants, and the right bytes always."""

from __future__ import annotations

import json
import random
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from installer.base.host import Host
from installer.base.report import JsonLines, Report
from installer.spec.model import Model, ModelError, Origin
from installer.weights import download, models, wire
from installer.weights.incoming import Incoming, Lease
from installer.weights.models import changes, resolve
from installer.weights.partial import BLOCK
from installer.weights.wanted import is_present
from tests.kit.bulk_hub import model
from tests.kit.hub import Hub
from tests.kit.weights import LAYOUT, REPO, Counting, blobs, refusal, settings

SIZE = 5 * BLOCK + 12345
BIG = "model-00001-of-00001.safetensors"
RATE = 20e6  # slow enough for connections to meet


@pytest.fixture
def server(plain_network: None) -> Iterator[Hub]:
    with Hub(rate=RATE) as running:
        running.add(REPO, in_memory())
        yield running


def in_memory() -> dict[str, bytes]:
    """One file of several blocks, which faults can damage."""
    made = model([SIZE])
    small = {name: content for name, content in made.items() if isinstance(content, bytes)}
    header = json.dumps({BIG: {"dtype": "U8", "shape": [SIZE - 1024], "data_offsets": [0, SIZE - 1024]}})
    start = (1016).to_bytes(8, "little") + header.encode().ljust(1016)
    return {**small, BIG: start + random.Random(1).randbytes(SIZE - 1024)}


def fetch(server: Hub, host: Host, connections: int = 8, report: Report | None = None) -> None:
    """Pull, and compare every byte."""
    found = pull(server, host, connections, report)
    (files,) = server.repos[REPO].commits.values()
    for file in found.files:
        assert (host.at(found.path) / file.name).read_bytes() == files[file.name].content, file.name


def pull(server: Hub, host: Host, connections: int = 8, report: Report | None = None) -> Model:
    chosen = replace(settings(server), download_connections=connections)
    found = resolve(chosen, host, LAYOUT)
    for change in changes(found, host, chosen):
        change.apply(host, report or Report())
    return found


def asked(server: Hub) -> list[str]:
    """The ranges of the large file that were asked of the CDN."""
    return [r.headers.get("range", "") for r in server.requests if r.server == "cdn" and BIG in r.path]


def total(server: Hub) -> int:
    (files,) = server.repos[REPO].commits.values()
    return sum(len(file.content) for file in files.values())


@pytest.mark.parametrize("connections", [1, 3, 8])
def test_as_many_connections_as_asked_for_each_byte_once(server: Hub, host: Host, connections: int) -> None:
    report = Counting()
    fetch(server, host, connections, report)
    assert server.sent == total(server) == sum(report.counts)
    assert server.most_at_once <= connections
    assert (server.most_at_once > 1) == (connections > 1)


def test_the_redirect_is_followed_once_a_file(server: Hub, host: Host) -> None:
    fetch(server, host)
    assert len(asked(server)) > 2
    assert sum(r.server == "hub" and BIG in r.path for r in server.requests) < len(asked(server))


def test_a_server_without_ranges_is_asked_once(server: Hub, host: Host) -> None:
    server.fail(f"/lfs/.*{BIG}", no_range=True, times=None)
    fetch(server, host)
    assert len(asked(server)) == 1
    assert server.sent == total(server)


def test_ranges_that_hold_other_bytes_are_noticed(server: Hub, host: Host) -> None:
    """The second time the file is fetched in one piece, which leaves nothing to lie about."""
    server.fail(f"/lfs/.*{BIG}", shift=100, times=3)
    fetch(server, host)
    assert asked(server)[-1] == ""


@pytest.mark.parametrize("answer", [f"bytes 5-{SIZE - 1}/{SIZE}", "bytes nonsense", f"bytes 0-{SIZE + 4}/{SIZE + 5}"])
def test_answers_with_another_range_are_not_taken(server: Hub, host: Host, answer: str) -> None:
    server.fail(f"/lfs/.*{BIG}", status=206, headers={"Content-Range": answer}, body=b"x" * 1000, times=2)
    fetch(server, host)


def test_a_server_that_wants_fewer_connections_gets_fewer(server: Hub, host: Host) -> None:
    server.welcome = 2
    fetch(server, host)
    assert server.most_at_once == 2
    assert server.sent == total(server)
    assert len(asked(server)) < 60, "no hammering"


def test_files_wait_for_each_other_where_the_server_takes_one_connection(server: Hub, host: Host) -> None:
    server.add(REPO, model([2 * BLOCK] * 3))
    server.welcome = 1
    assert is_present(pull(server, host), host)
    assert server.most_at_once == 1


def test_a_server_that_often_fails_is_asked_again_while_something_comes(server: Hub, host: Host) -> None:
    for _ in range(len(download.RETRY_DELAYS) + 2):
        server.fail(f"/lfs/.*{BIG}", status=503)
        server.fail(f"/lfs/.*{BIG}")
    fetch(server, host, connections=1)
    assert not [fault for fault in server.faults if fault.times]


def test_only_files_that_are_served_say_that_one_more_is_too_many(tmp_path: Path) -> None:
    """Where nobody is, all are as unlucky: to try them one after another would take as many times as long."""
    waiting, other = (
        Incoming(download.Blob(name, "http://none.invalid/", tmp_path / name, 4 * BLOCK, "0" * 64), 4) for name in "ab"
    )
    transfer = download.Transfer([waiting, other], Origin(REPO, None, None), 4, {})
    leases = [begin(waiting), begin(other)]

    def fails() -> int:
        """Let a try for the first file fail; how many connections there are to be afterwards."""
        waiting.give_back(leases[0])
        transfer._learn(leases[0], 0, download._Again(ValueError("refused")))
        leases[0] = begin(waiting)
        return transfer._pace.connections

    assert (fails(), waiting.misses) == (4, 1), "nobody is served"
    transfer._serves(leases[1])
    assert (fails(), waiting.misses) == (1, 1), "the other one is: one connection is all"


def begin(file: Incoming) -> Lease:
    if not file.is_open:
        file.open()
    lease = file.lease(BLOCK)
    assert lease
    return lease


def test_an_address_that_is_not_good_any_more_is_asked_for_again(server: Hub, host: Host) -> None:
    server.fail(f"/lfs/.*{BIG}", cut=BLOCK // 2)
    server.fail(f"/lfs/.*{BIG}", status=403)
    fetch(server, host, connections=1)
    assert server.sent < total(server) + BLOCK


def test_a_connection_that_falls_silent_is_left(server: Hub, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "STALLED", 5.0)
    server.fail(f"/lfs/.*{BIG}", cut=100_000, hold=threading.Event())
    fetch(server, host)
    assert server.sent == total(server)


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "/again"])
def test_a_redirect_to_nowhere_is_not_followed(server: Hub, host: Host, location: str) -> None:
    server.fail(f"/resolve/.*{BIG}|/again", status=302, headers={"Location": location}, times=None)
    assert "no answer" in refusal(server, host).message


def test_the_display_of_a_program_is_json_lines(
    server: Hub, host: Host, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JsonLines, "EVERY", 0.0)
    fetch(server, host, report=JsonLines())
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert {event["event"] for event in events} == {"progress"}
    first, last = events[0], events[-1]
    assert (first["bytes"], first["files"]) == (0, 0)
    assert last["bytes"] == last["bytes_total"] == total(server)
    assert last["files"] == last["files_total"]
    assert all(before["bytes"] <= after["bytes"] for before, after in zip(events, events[1:], strict=False))
    assert any(event["bytes_per_second"] and event["seconds_left"] for event in events[1:-1])


# The disk


@contextmanager
def small_disk(host: Host, size: int) -> Iterator[Path]:
    host.make_dir(LAYOUT.hub)
    disk = host.at(LAYOUT.hub)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "small", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.root
@pytest.mark.parametrize("seed", range(5))
def test_a_disk_that_is_full_at_a_random_byte(
    server: Hub, host: Host, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    server.rate = 0
    monkeypatch.setattr(models, "HEADROOM", -(1 << 60))
    with small_disk(host, random.Random(seed).randrange(200_000, SIZE)) as disk:
        error = refusal(server, host)
        assert "disk is full" in error.message
        subprocess.run(["mount", "-o", f"remount,size={2 * SIZE}", disk], check=True)
        with Hub() as again:  # the first may still be sending to those who have gone
            again.add(REPO, in_memory())
            missing = resolve(settings(again), host, LAYOUT).bytes_missing
            assert missing < total(again)
            fetch(again, host)
            assert again.sent == missing


@pytest.mark.root
def test_a_read_only_cache_is_named(server: Hub, host: Host) -> None:
    with small_disk(host, 2 * SIZE) as disk:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        error = refusal(server, host)
        assert f"{LAYOUT.hub} is on a read-only file system" in error.message
    assert server.sent == 0


@pytest.mark.root
def test_a_link_in_place_of_a_begun_file_is_not_followed(server: Hub, host: Host, tmp_path: Path) -> None:
    """Whoever may write to the cache must not make root write elsewhere."""
    precious = tmp_path / "precious"
    precious.write_text("as it was")
    found = resolve(settings(server), host, LAYOUT)
    host.make_dir(LAYOUT.hub / "models--Org--Tiny/blobs")
    for file in found.files:
        (blobs(host) / f"{file.digest}.incomplete").symlink_to(precious)
    fetch(server, host)
    assert precious.read_text() == "as it was"


def test_wrong_bytes_on_every_connection_end_it(server: Hub, host: Host) -> None:
    server.fail(f"/lfs/.*{BIG}", corrupt=True, times=None)
    with pytest.raises(ModelError, match="wrong bytes twice"):
        fetch(server, host)


@pytest.mark.parametrize(
    ("rates", "connections"),
    [
        ((40, 80, 160, 320), 16),  # each connection brings its share
        ((100, 100, 100, 100), 8),  # something else is the limit
        ((100, 90, 130, 130), 16),  # it was busy for a while
        ((0, 0, 0, 0), 4),
    ],
)
def test_there_are_more_connections_as_long_as_more_of_them_bring_more(
    monkeypatch: pytest.MonkeyPatch, rates: tuple[int, ...], connections: int
) -> None:
    now, have = [100.0], 5
    monkeypatch.setattr(download.time, "monotonic", lambda: now[0])
    pace = download._Pace(16, have)
    for rate in rates:
        now[0], have = now[0] + 1, have + rate
        pace.grows(have)
    assert pace.connections == connections
