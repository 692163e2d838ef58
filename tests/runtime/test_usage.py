"""The table of usage as several processes share it: killed, stopped, written over, cut short, on a full disk."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from installer.base.assets import RUNTIME
from installer.runtime import vllm_usage
from installer.runtime.vllm_usage import KEYS, RECORDS_AT, SIZE, STRIDE, Numbers
from installer.runtime.vllm_usage_record import Record, month_of
from installer.runtime.vllm_usage_table import LOOK_EVERY, Table

DAY = 86400
ONE = (1, 0, 0, 10, 4, 2)


class Clocks:
    def __init__(self) -> None:
        self.second, self.wall = 500.0, 20_800 * DAY + 7.0


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def table(tmp_path: Path, clocks: Clocks) -> Iterator[Table]:
    table = Table(str(tmp_path), lambda: clocks.second, lambda: clocks.wall)
    table.ready(0)
    yield table
    os.close(table.descriptor)


def add(table: Table, name: str = "a", numbers: tuple[int, ...] = ONE) -> None:
    table.add(name, numbers, is_limited=True)


def total(table: Table, name: str = "a") -> Numbers | None:
    return dict(table.totals()).get(name)


def read(folder: Path) -> dict[str, vllm_usage.Used]:
    return {used.name: used for used in vllm_usage.read((folder / "usage").read_bytes())}


def recent(table: Table, name: str = "a") -> tuple[int, int] | None:
    return table.change(name, lambda record: record.recent)


def spent(table: Table, name: str = "a") -> int | None:
    return table.change(name, lambda record: record.spent)


def test_it_is_the_service_s_alone_and_never_grows(table: Table, tmp_path: Path) -> None:
    status = (tmp_path / "usage").stat()
    assert (status.st_mode & 0o777, status.st_size) == (0o600, SIZE)
    assert status.st_blocks * 512 >= SIZE, "its room is taken now, and not when the disk is full"
    for number in range(50):
        add(table, f"key-{number}")
    assert (tmp_path / "usage").stat().st_size == SIZE < 8 << 20


def test_what_is_counted_is_read_by_key_and_day(table: Table, clocks: Clocks, tmp_path: Path) -> None:
    add(table)
    clocks.wall += DAY
    add(table)
    add(table, numbers=(0, 0, 1, 0, 0, 0))
    add(table, "b-2_x", (1, 1, 0, 0, 0, 0))
    found = read(tmp_path)
    assert found["a"] == (
        "a", 20_801 * DAY + 7, Numbers(2, 0, 1, 20, 8, 4),
        {20_800: Numbers(*ONE), 20_801: Numbers(1, 0, 1, 10, 4, 2)},
    )  # fmt: skip
    assert found["b-2_x"].total == Numbers(requests=1, errors=1)
    assert len(found) == 2


def test_the_oldest_days_go(table: Table, clocks: Clocks, tmp_path: Path) -> None:
    for _ in range(250):
        add(table)
        clocks.wall += DAY
    days = read(tmp_path)["a"].days
    assert min(days) == 20_800 + 250 - vllm_usage.DAYS - 1
    assert max(days) == 20_800 + 249
    assert read(tmp_path)["a"].total.requests == 250


def test_a_minute_slides(table: Table, clocks: Clocks) -> None:
    for second in range(300):
        clocks.second = 500.0 + second
        add(table)
        table.change("a", lambda record: record.add_recent(1, 0))
        assert recent(table) == (min(60, second + 1), 12 * min(60, second + 1))
    clocks.second += 30
    assert recent(table) == (30, 360)
    clocks.second += 1000
    assert recent(table) == (0, 0)


def test_a_boot_begins_the_minute_anew(table: Table, clocks: Clocks) -> None:
    add(table)
    clocks.second = 3.0
    assert recent(table) == (0, 0)
    assert total(table) == ONE


def test_a_clock_that_jumps_changes_no_minute_and_loses_no_day(table: Table, clocks: Clocks, tmp_path: Path) -> None:
    add(table)
    for jump in (40 * DAY, -40 * DAY, -3 * DAY, 3 * DAY, 400 * DAY, -400 * DAY):
        clocks.wall += jump
        add(table)
    assert recent(table) == (0, 7 * 12)
    days = {day - 20_800: numbers.requests for day, numbers in read(tmp_path)["a"].days.items()}
    assert days == {0: 4, 40: 1, -3: 1, 400: 1} | ({0: 4} if 400 % vllm_usage.DAYS else {})
    assert spent(table) == sum(
        12 * number for day, number in days.items() if month_of(20_800 + day) == month_of(20_800)
    )


@pytest.mark.parametrize("year", [0, 9_999, 40_000])
def test_a_clock_that_is_out_of_all_bounds_stops_nobody(
    table: Table, clocks: Clocks, year: int, tmp_path: Path
) -> None:
    clocks.wall = (year - 1970) * 365.25 * DAY
    add(table)
    clocks.wall = 20_800 * DAY
    add(table)
    assert read(tmp_path)["a"].days[20_800] == ONE


def test_a_month_ends_with_its_last_day(table: Table, clocks: Clocks) -> None:
    clocks.wall = 1_796_083_199.0  # 2026-11-30T23:59:59Z
    add(table)
    assert spent(table) == 12
    clocks.wall += 1
    assert spent(table) == 0
    add(table)
    clocks.wall += 30 * DAY
    assert spent(table) == 12
    clocks.wall += DAY
    assert spent(table) == 0


def test_of_more_keys_than_have_room_the_one_unused_for_longest_goes(table: Table, clocks: Clocks) -> None:
    for number in range(KEYS):
        clocks.wall += 1
        add(table, f"key-{number}")
    clocks.wall += 1
    add(table, "key-0")
    add(table, "one-more")
    assert total(table, "one-more") == ONE
    assert total(table, "key-1") is None
    assert total(table, "key-0") == tuple(2 * number for number in ONE)
    assert len(table.totals()) == KEYS
    add(table, "key-1")
    assert total(table, "key-1") == ONE


def test_a_name_that_is_too_long_is_counted_by_its_beginning(table: Table, tmp_path: Path) -> None:
    add(table, "x" * 200)
    assert list(read(tmp_path)) == ["x" * 48]


# What becomes of the file


def garbage(path: Path, how: str) -> None:
    if how == "random":
        path.write_bytes(random.Random(1).randbytes(SIZE))
    elif how == "text":
        path.write_text("something else")
    elif how == "of another version":
        path.write_bytes(b"usage-02" + path.read_bytes()[8:])
    elif how == "cut short":
        os.truncate(path, SIZE // 2)
    else:
        assert how == "empty"
        os.truncate(path, 0)


@pytest.mark.parametrize("how", ["random", "text", "of another version", "cut short", "empty"])
def test_garbage_is_made_anew_and_said(
    table: Table, clocks: Clocks, tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    add(table)
    garbage(tmp_path / "usage", how)
    again = Table(str(tmp_path), lambda: clocks.second, lambda: clocks.wall)
    add(again)
    assert read(tmp_path)["a"].total == ONE
    assert sum("is made anew" in said for said in caplog.messages) == (how != "empty")
    add(table)  # who had it open all the time goes on with it
    assert read(tmp_path)["a"].total.requests == 2


@pytest.mark.parametrize("how", ["random", "text", "cut short", "empty"])
def test_what_is_written_over_while_it_is_open_is_counted_anew(
    table: Table, clocks: Clocks, tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    add(table)
    garbage(tmp_path / "usage", how)
    add(table)
    clocks.second += LOOK_EVERY + 1
    add(table)
    assert 1 <= read(tmp_path)["a"].total.requests <= 2
    assert any("is made anew" in said for said in caplog.messages)


def test_numbers_that_make_no_sense_are_counted_anew(
    table: Table, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add(table)
    with (tmp_path / "usage").open("r+b") as file:
        file.seek(RECORDS_AT + 56)
        file.write(b"\xff" * 400)
    add(table)
    assert read(tmp_path)["a"].total == ONE
    assert any("counted anew" in said for said in caplog.messages)


def test_a_file_that_was_removed_is_there_again(table: Table, clocks: Clocks, tmp_path: Path) -> None:
    table.begin("a", 1)
    add(table)
    (tmp_path / "usage").unlink()
    clocks.second += LOOK_EVERY + 1
    add(table)
    assert read(tmp_path)["a"].total == ONE


@pytest.mark.parametrize("how", ["a directory", "a link", "a FIFO", "nowhere"])
def test_where_no_file_can_be_it_is_counted_in_memory_and_said(
    clocks: Clocks, tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    place = tmp_path / "usage"
    if how == "a directory":
        place.mkdir()
    elif how == "a link":
        (tmp_path / "elsewhere").write_text("precious")
        place.symlink_to(tmp_path / "elsewhere")
    elif how == "a FIFO":
        os.mkfifo(place)
    table = Table(str(tmp_path / "nowhere" if how == "nowhere" else tmp_path), lambda: clocks.second)
    for _ in range(3):
        add(table)
    assert total(table) == tuple(3 * number for number in ONE)
    assert sum("usage is not kept" in said for said in caplog.messages) == 1
    if how == "a link":
        assert (tmp_path / "elsewhere").read_text() == "precious"


COUNT = """
import logging, resource, sys
sys.path.insert(0, sys.argv[1])
from vllm_usage_table import Table
logging.basicConfig(format="%(message)s", stream=sys.stdout)
table = Table(sys.argv[2])
for number in range(6):
    table.add("a", (1, 0, 0, 10, 4, 2), is_limited=True)
    table.begin("a", 1)
    table.publish(1, 1, 1)
    if sys.argv[3] == "fails" and number == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    if sys.argv[3] == "fills" and number == 0:
        sys.stdin.readline()
print("total", *dict(table.totals())["a"])
"""


def count(folder: Path, how: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-B", "-c", COUNT, str(RUNTIME), str(folder), how]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_write_that_fails_stops_nobody(tmp_path: Path) -> None:
    said, _ = count(tmp_path, "fails").communicate("")
    assert "total 1 0 0" in said
    assert said.count("usage is not kept") == 1


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for one table and a little more."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE + (64 << 10)}", "none", place], check=True)
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def fill(disk: Path) -> None:
    with (disk / "weights").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    assert not os.statvfs(disk).f_bavail


@pytest.mark.root
def test_a_disk_that_is_full_at_first_is_said_and_it_is_counted_in_memory(disk: Path) -> None:
    fill(disk)
    said, _ = count(disk, "").communicate("")
    assert "total 6 0 0 60 24 12" in said
    assert said.count("No space left") == 1
    assert not (disk / "usage").exists() or (disk / "usage").stat().st_size == 0


@pytest.mark.root
def test_a_disk_that_fills_later_takes_nothing_from_what_is_counted(disk: Path) -> None:
    process = count(disk, "fills")
    while not (disk / "usage").exists() or not read(disk):
        assert process.poll() is None
    fill(disk)
    said, _ = process.communicate("\n")
    assert said == "total 6 0 0 60 24 12\n"
    assert read(disk)["a"].total.requests == 6


# Several processes

COUNTS = """
import sys
sys.path.insert(0, sys.argv[1])
from vllm_usage_table import Table
table = Table(sys.argv[2])
while True:
    table.add("a", (1, 0, 0, 10, 4, 2), is_limited=True)
    sys.stdout.write("x")
    sys.stdout.flush()
"""


def counting(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-B", "-c", COUNTS, str(RUNTIME), str(folder)], stdout=subprocess.PIPE)


def test_a_process_that_is_killed_at_any_point_loses_nothing_and_holds_up_nobody(table: Table, tmp_path: Path) -> None:
    chance, told = random.Random(3), 0
    for _ in range(12):
        processes = [counting(tmp_path) for _ in range(2)]
        for process in processes:
            assert process.stdout
            told += len(process.stdout.read(chance.randint(20, 300)))
        for process in processes:
            process.kill()
            told += len(process.communicate()[0])
    found = total(table)
    assert found is not None
    assert told <= found.requests <= told + 24
    assert found.prompt_tokens == 10 * found.requests
    add(table)
    assert table.descriptor > 0
    assert total(table) == tuple(map(sum, zip(found, ONE, strict=True)))


def test_who_was_stopped_with_the_lock_holds_up_nobody(table: Table, tmp_path: Path) -> None:
    with (tmp_path / "usage").open("r+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        for _ in range(10):
            add(table)
    assert total(table) == tuple(10 * number for number in ONE)


HOLDS = """
import sys
sys.path.insert(0, sys.argv[1])
from vllm_usage_table import Table
table = Table(sys.argv[2])
table.add("a", (0,) * 6, is_limited=True)
table.begin("a", 5)
print(table.slots.own, flush=True)
sys.stdin.read()
"""


def holding(folder: Path) -> tuple[subprocess.Popen[str], int]:
    command = [sys.executable, "-B", "-c", HOLDS, str(RUNTIME), str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    return process, int(process.stdout.readline())


def test_the_place_of_a_dead_process_is_the_next_one_s_without_what_it_had_under_way(
    table: Table, clocks: Clocks, tmp_path: Path
) -> None:
    first, its_place = holding(tmp_path)
    assert its_place == own_place(table) + 1
    second, place = holding(tmp_path)
    assert table.change("a", active) == 10
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert table.change("a", forgotten) == 5
    third, again = holding(tmp_path)
    assert (place, again) == (its_place + 1, its_place)
    clocks.second += 1
    assert table.change("a", active) == 10
    for each in (second, third):
        each.kill()
        each.communicate()
    assert table.change("a", forgotten) == 0


def own_place(table: Table) -> int:
    return table.ready(0).own


def active(record: Record) -> int:
    return record.slots.active(record.place)


def forgotten(record: Record) -> int:
    record.slots.forget_dead(record.place)
    return active(record)


def test_asking_who_lives_does_not_give_up_the_own_place(table: Table, clocks: Clocks, tmp_path: Path) -> None:
    for _ in range(3):
        clocks.second += 1
        table.ready(0).taken()
        table.others()
        table.change("a", forgotten)
    process, place = holding(tmp_path)
    process.kill()
    process.communicate()
    assert place == own_place(table) + 1


# The file as it comes from somebody else


def test_records_lie_where_they_are_looked_for() -> None:
    assert vllm_usage.DAYS_AT + vllm_usage.DAYS * vllm_usage.NUMBERS.size <= STRIDE
    assert vllm_usage.SLOTS_AT + vllm_usage.SLOTS * vllm_usage.SLOT.size <= RECORDS_AT
