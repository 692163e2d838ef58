"""A download over lines that break, servers that lie, and processes that end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from installer.base.errors import Exit, Interrupted
from installer.base.host import Host
from installer.base.report import Advance, Report
from installer.spec.model import ModelError
from installer.weights import hub, partial
from installer.weights.models import Download, resolve
from tests.kit.hub import Hub
from tests.kit.weights import (
    LAYOUT,
    REPO,
    SHARD,
    WANTED,
    Counting,
    blobs,
    checkpoint,
    child,
    due,
    pull,
    read_until,
    resolved_and_pulled,
    served,
    settings,
)

# Broken lines


def test_a_reset_is_continued_at_the_byte_it_came(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())
    server.fail(f"/lfs/.*{SHARD}", cut=100_000)
    server.fail(f"/lfs/.*{SHARD}", cut=50_000)
    resolved_and_pulled(server, host)
    ranges = [r.headers["range"] for r in server.requests if r.server == "cdn" and "range" in r.headers]
    assert len(ranges) == 2
    assert server.sent < sum(len(checkpoint()[name]) for name in WANTED) + 150_000, "not from the start again"


def test_a_server_without_ranges_still_gets_it_through(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())
    server.fail(f"/lfs/.*{SHARD}", cut=100_000, no_range=True)
    server.fail(f"/lfs/.*{SHARD}", no_range=True, times=None)
    report = Counting()
    model = pull(server, host, report)
    assert served(host, model)[SHARD] == checkpoint()[SHARD]
    assert sum(report.counts) == report.totals[0], "the display takes back what was thrown away"
    assert sum(f"/{SHARD}" in r.path for r in server.requests if r.server == "cdn") == 2


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_busy_hub_is_asked_again(server: Hub, host: Host, status: int) -> None:
    server.add(REPO, checkpoint())
    for path in ("/api/models", "/resolve/.*config.json", "/lfs/"):
        server.fail(path, status=status, headers={"Retry-After": "0"}, times=2)
    resolved_and_pulled(server, host)


def test_a_hub_that_names_a_wait_gets_it(server: Hub, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add(REPO, checkpoint())
    server.fail("/api/models", status=429, headers={"Retry-After": "7"})
    waits: list[float] = []
    monkeypatch.setattr(hub.time, "sleep", waits.append)
    resolve(settings(server), host, LAYOUT)
    assert waits == [7]


def test_retry_after_is_understood_in_both_forms() -> None:
    assert hub.retry_after("7") == 7
    assert hub.retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert hub.retry_after("Wed, 21 Oct 2099 07:28:00 GMT") == hub.LONGEST_WAIT
    assert hub.retry_after("soon") == hub.retry_after(None) == 0


def test_a_slow_line_is_no_fault(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint(size=20_000))
    server.fail("/lfs/", drip=0.001, times=None)
    resolved_and_pulled(server, host)


@pytest.mark.parametrize("fault", [{"corrupt": True}, {"end": 1000}, {"body": b"x", "status": 200}])
def test_wrong_bytes_are_fetched_anew_once(server: Hub, host: Host, fault: dict[str, object]) -> None:
    server.add(REPO, checkpoint())
    server.fail(f"/lfs/.*{SHARD}", **fault)
    server.fail("/resolve/.*/config.json", corrupt=True)
    resolved_and_pulled(server, host)


def test_wrong_bytes_twice_end_the_download(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())
    server.fail(f"/lfs/.*{SHARD}", corrupt=True, times=None)
    with pytest.raises(ModelError, match=f"{SHARD} arrived with wrong bytes twice") as caught:
        pull(server, host)
    assert caught.value.exit_code == Exit.MODEL
    digest = server.repos[REPO].commits[next(iter(server.repos[REPO].commits))][SHARD].sha256
    assert not (blobs(host) / digest).exists()
    assert partial.arrived(blobs(host) / digest, len(checkpoint()[SHARD])) == 0, "wrong bytes are not continued"
    server.faults.clear()
    resolved_and_pulled(server, host)


def test_a_file_that_stays_too_short_ends_the_download(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())
    server.fail(f"/lfs/.*{SHARD}", end=1000, times=None)
    with pytest.raises(ModelError, match="wrong bytes twice: 1000 bytes"):
        pull(server, host)


def test_a_partial_with_wrong_bytes_is_noticed(server: Hub, host: Host) -> None:
    commit = server.add(REPO, checkpoint())
    digest = server.repos[REPO].commits[commit][SHARD].sha256
    host.make_dir(LAYOUT.hub / "models--Org--Tiny/blobs")
    for begun in (b"\0" * 5000, b"\0" * 9_000_000):
        (blobs(host) / f"{digest}.incomplete").write_bytes(begun)
        report = Counting()
        model = pull(server, host, report)
        assert sum(report.counts) == report.totals[0]
        assert served(host, model)[SHARD] == checkpoint()[SHARD]
        (host.at(model.path) / SHARD).resolve().unlink()


def test_what_another_client_or_commit_left_half_done_is_swept(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())
    host.make_dir(LAYOUT.hub / "models--Org--Tiny/blobs")
    (blobs(host) / "0123.a1b2.incomplete").write_bytes(b"left over")
    resolved_and_pulled(server, host)
    assert [path.name for path in blobs(host).iterdir() if len(path.name) not in (40, 64)] == []


# Interruptions


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_another_process_continues_where_one_was_killed(server: Hub, host: Host, how: signal.Signals) -> None:
    size, held = 2_000_000, 1_500_000
    server.add(REPO, checkpoint(size=size))
    release = threading.Event()
    server.fail("/lfs/.*0000[12]-of", cut=held, hold=release, times=2)
    with child(server, host) as process:
        read_until(process, 2 * held)
        process.send_signal(how)
        release.set()
        assert process.wait() != 0
    model = resolve(settings(server), host, LAYOUT)
    assert model.bytes_missing < model.bytes_total - 2 * held + 1
    server.wait_until(lambda: server.sending == 0)
    sent = server.sent
    for change in due(model, host):
        change.apply(host, Report())
    assert server.sent - sent == model.bytes_missing, "not one byte twice"
    assert served(host, model)[SHARD] == checkpoint(size=size)[SHARD]


def test_the_second_of_two_waits_and_says_so(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())
    fault = server.fail(f"/lfs/.*{SHARD}", cut=100_000, hold=threading.Event())
    first = threading.Thread(target=pull, args=(server, host))
    first.start()
    assert fault.reached.wait(180)
    with child(server, host) as second:
        assert second.stdout is not None
        assert second.stdout.readline() == "resolved\n"
        assert "another process downloads Org/Tiny" in second.stdout.readline()
        assert fault.hold is not None
        fault.hold.set()
        first.join()
        assert second.wait() == 0
        assert second.stdout.read() == "", "there was nothing left to fetch"
    resolved_and_pulled(server, host)


def test_a_fault_in_one_file_stops_the_others_at_once(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint(size=3_000_000))
    server.fail("/resolve/.*/config.json", status=403, times=None)
    server.fail("/lfs/.*0000[12]-of", drip=0.001, times=2)
    with pytest.raises(ModelError):
        pull(server, host)
    assert server.sent < 3_000_000


def test_an_interruption_keeps_what_has_come(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())
    fault = server.fail(f"/lfs/.*{SHARD}", cut=100_000, hold=threading.Event(), times=None)

    class Cut(Report):
        @contextmanager
        def bytes(self, label: str, total: int, files: int = 0) -> Iterator[Advance]:
            def advance(count: int, files: int = 0) -> None:
                self.seen += count
                if self.seen > 50_000:
                    raise Interrupted("SIGTERM")

            self.seen = 0
            yield advance

    model = resolve(settings(server), host, LAYOUT)
    with pytest.raises(Interrupted):
        Download(model, 8, (model.origin,)).apply(host, Cut())
    server.faults.clear()
    assert fault.hold
    fault.hold.set()
    assert 0 < resolve(settings(server), host, LAYOUT).bytes_missing < model.bytes_total
    resolved_and_pulled(server, host)
