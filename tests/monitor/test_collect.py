"""Collecting is bounded: a source that hangs or fails costs its own rows, says so, and nothing of the others."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

from installer.base.host import Host
from installer.monitor import collect
from installer.monitor.moment import Moment, Source
from installer.monitor.textfile import Family, Row

UP = Family("up", "Whether.")


def good(_: Moment) -> Iterator[Row]:
    yield Row("up", {"of": "good"}, 1)


def failing(_: Moment) -> Iterator[Row]:
    yield Row("up", {"of": "failing"}, 1)
    raise OSError("gone\nup 1")


def test_what_a_source_said_before_it_failed_or_hung_is_kept(tmp_path: Path) -> None:
    never = threading.Event()

    def hanging(_: Moment) -> Iterator[Row]:
        yield Row("up", {"of": "hanging"}, 1)
        never.wait()

    sources = tuple(Source(rows.__name__, (UP,), rows) for rows in (hanging, failing, good))
    try:
        said = collect.text(collect.look(Host(tmp_path)), sources, within=3.0)
    finally:
        never.set()
    assert [line for line in said.splitlines() if line.startswith("up")] == [
        f'up{{host="localhost",of="{name}"}} 1' for name in ("hanging", "failing", "good")
    ]
    assert '# why: OSError: gone up 1\nvllm_install_source_failed{host="localhost",source="failing"} 1\n' in said
    assert 'vllm_install_source_failed{host="localhost",source="hanging"} 1\n' in said
    assert 'source="good"' not in said


def test_a_host_without_services_says_when_and_by_whom(tmp_path: Path) -> None:
    said = collect.text(collect.look(Host(tmp_path)))
    assert '\nvllm_install_collected_timestamp_seconds{host="localhost"} ' in said
    assert 'vllm_install_disk_free_bytes{host="localhost",what="weights"}' in said
    assert "source_failed" not in said


def test_no_two_sources_have_one_name_or_one_family() -> None:
    names = [source.name for source in collect.SOURCES]
    families = [family.name for family in (*collect.FAMILIES, *(f for s in collect.SOURCES for f in s.families))]
    assert (len(set(names)), len(set(families))) == (len(names), len(families))
