"""Usage as root reads it from a file that the service could have written anything into."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from installer.base.errors import Refused, UsageError
from installer.base.files import Strange
from installer.base.host import Host
from installer.base.layout import Layout
from installer.look import usage
from installer.runtime import vllm_usage
from installer.runtime.vllm_usage import HEADER, MOST, RECORDS_AT, SIZE, STRIDE
from installer.runtime.vllm_usage_table import Table
from installer.spec.records import save_state
from installer.spec.state import State
from installer.verbs.output import as_plain

LAYOUT = Layout("qwen3vl")
MONTH = 30 * 86400


@pytest.fixture
def service(host: Host) -> Host:
    save_state(host, LAYOUT, State("qwen3vl"))
    return host


def write(host: Host, *, days_ago: int = 0, name: str = "a", numbers: tuple[int, ...] = (1, 0, 0, 10, 4, 2)) -> None:
    place = host.at(LAYOUT.usage_dir)
    place.mkdir(parents=True, exist_ok=True)
    table = Table(str(place), wall=lambda: time.time() - days_ago * 86400)
    table.add(name, numbers, is_limited=False)
    table.say_tokens_are_counted(True)
    os.close(table.descriptor)


def test_nobody_has_asked_yet(service: Host) -> None:
    found = usage.usage("qwen3vl", service, MONTH)
    assert found.keys == ()
    assert found.tokens_are_counted
    assert usage.last_used(service, LAYOUT) == {}


def test_usage_is_by_key_and_by_day(service: Host) -> None:
    for ago in (0, 0, 6, 7, 40):
        write(service, days_ago=ago)
    write(service, name="b", numbers=(5, 2, 1, 0, 0, 1000))
    week = usage.usage("qwen3vl", service, 7 * 86400)
    assert [(each.key, each.requests, each.prompt_tokens) for each in week.keys] == [("b", 5, 0), ("a", 3, 30)]
    assert [day.requests for day in week.keys[1].days] == [1, 2]
    assert usage.usage("qwen3vl", service, 41 * 86400, "a").keys[0].requests == 5
    with pytest.raises(UsageError, match="there is no key named 'nobody'"):
        usage.usage("qwen3vl", service, 41 * 86400, "nobody")
    assert usage.usage("qwen3vl", service, 60).keys[1].requests == 2, "today"
    json.dumps(as_plain(week))
    shown = usage.lines(week, by_day=False)
    assert shown[1].split()[:7] == ["b", "5", "2", "1", "0", "0", "1,000"]
    assert len(usage.lines(usage.usage("qwen3vl", service, MONTH, "a"), by_day=True)) == 4
    assert set(usage.last_used(service, LAYOUT)) == {"a", "b"}


def test_a_service_that_is_not_ours_has_none(host: Host) -> None:
    with pytest.raises(Refused):
        usage.usage("qwen3vl", host, MONTH)


@pytest.mark.parametrize("how", ["a link", "a FIFO", "too long"])
def test_what_is_no_file_of_the_service_is_not_read(service: Host, tmp_path: Path, how: str) -> None:
    write(service)
    place = service.at(LAYOUT.usage_file)
    if how == "too long":
        os.truncate(place, SIZE + 1)
    else:
        place.rename(tmp_path / "elsewhere")
        os.mkfifo(place) if how == "a FIFO" else place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Strange):
        usage.usage("qwen3vl", service, MONTH)
    assert usage.last_used(service, LAYOUT) == {}


@pytest.mark.root
def test_a_file_that_is_somebody_else_s_is_not_read(service: Host) -> None:
    write(service)
    os.chown(service.at(LAYOUT.usage_file), 65534, 65534)
    with pytest.raises(Strange):
        usage.usage("qwen3vl", service, MONTH)


@pytest.mark.parametrize("number", [MOST + 1, 2**63, 2**64 - 1])
def test_a_number_that_cannot_be_is_none(service: Host, number: int) -> None:
    write(service)
    content = bytearray(service.at(LAYOUT.usage_file).read_bytes())
    today, yesterday = RECORDS_AT + 48 + 8 * vllm_usage.TODAY, RECORDS_AT + vllm_usage.DAYS_AT + 7 * 8 * 5
    content[today : today + 8] = number.to_bytes(8, "little")
    cell = (int(time.time() // 86400) - 1, number, 0, 0, 0, 0, 7)
    content[yesterday : yesterday + 56] = vllm_usage.NUMBERS.pack(*cell)
    service.at(LAYOUT.usage_file).write_bytes(bytes(content))
    (found,) = usage.usage("qwen3vl", service, MONTH).keys
    assert (found.requests, found.prompt_tokens, len(found.days)) == (0, 10, 1)


WORDS = st.integers(0, 2**64 - 1) | st.sampled_from((0, 1, MOST, MOST + 1, 2**63, 2**64 - 1, 20_800, 2_932_896))
NAMES = st.binary(max_size=48) | st.sampled_from((b"a", b"a\0b", b"\x1b[2J", b"A", b"-", b"x" * 48, b"a\n"))


@given(st.lists(st.tuples(NAMES, st.lists(WORDS, max_size=60), st.integers(0, STRIDE - 500)), max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_whatever_the_service_wrote_there_what_is_shown_are_names_and_numbers(
    service: Host, records: list[tuple[bytes, list[int], int]]
) -> None:
    content = bytearray(HEADER.ljust(SIZE, b"\0"))
    for number, (name, words, at) in enumerate(records):
        place = RECORDS_AT + number * STRIDE
        content[place : place + len(name)] = name
        packed = b"".join(word.to_bytes(8, "little") for word in words)
        for start in (place + 48, place + at):
            packed = packed[: place + STRIDE - start]
            content[start : start + len(packed)] = packed
    service.at(LAYOUT.usage_dir).mkdir(parents=True, exist_ok=True)
    service.at(LAYOUT.usage_file).write_bytes(bytes(content))
    found = usage.usage("qwen3vl", service, 10**9)
    for each in found.keys:
        assert vllm_usage.NAME.fullmatch(each.key.encode())
        for spent in (each, *each.days):
            assert all(0 <= getattr(spent, name) <= MOST * 100 for name in vllm_usage.Numbers._fields)
    json.dumps(as_plain(found))
    for line in [*usage.lines(found, by_day=False), *usage.lines(found, by_day=True)]:
        assert line.isprintable()
    usage.last_used(service, LAYOUT)


@given(st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_of_a_file_that_is_no_table_nothing_is_shown(service: Host, content: bytes) -> None:
    service.at(LAYOUT.usage_dir).mkdir(parents=True, exist_ok=True)
    service.at(LAYOUT.usage_file).write_bytes(content)
    assert usage.usage("qwen3vl", service, MONTH).keys == ()
    assert vllm_usage.read(content.ljust(SIZE, b"\xff")) == []
