"""Changes: what they say they would do is what they do, as text and as data, once or twice."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from installer.base.changes import Change, Handover, Remove, Restart, Run, Write, told
from installer.base.errors import CommandFailed
from installer.base.host import Host
from installer.base.layout import Layout
from installer.base.report import Bars, Lines, Report, choose, size
from installer.units.keyring import TakeKeys

CONF = Path("/etc/app.conf")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.mark.parametrize(
    ("change", "text", "data"),
    [
        (
            Write(CONF, "é\n"),
            "write /etc/app.conf (0644, 3 bytes)",
            {"kind": "write", "path": "/etc/app.conf", "mode": "0644", "text": "é\n"},
        ),
        (
            Write(CONF, "hush", 0o600, secret=True),
            "write /etc/app.conf (0600, 4 bytes)",
            {"kind": "write", "path": "/etc/app.conf", "mode": "0600", "secret": True},
        ),
        (
            Remove(CONF),
            "remove /etc/app.conf",
            {"kind": "remove", "path": "/etc/app.conf", "only_if_empty": False},
        ),
        (
            Remove(CONF, only_if_empty=True),
            "remove /etc/app.conf if it is empty",
            {"kind": "remove", "path": "/etc/app.conf", "only_if_empty": True},
        ),
        (
            Run(("useradd", "a b"), "make an account"),
            "make an account (useradd 'a b')",
            {"kind": "run", "argv": ["useradd", "a b"], "why": "make an account"},
        ),
        (TakeKeys(Layout("a")), "put the keys of a.service into force", {"kind": "keys", "unit": "a.service"}),
        (
            Handover("a.service"),
            "hand a.service over to its successor, while callers wait",
            {"kind": "handover", "unit": "a.service"},
        ),
        (Restart("a.service"), "restart a.service", {"kind": "restart", "unit": "a.service"}),
    ],
)
def test_a_change_is_shown_as_text_and_as_data(change: Change, text: str, data: dict[str, object]) -> None:
    assert change.describe() == text
    assert change.to_json() == data
    assert json.loads(json.dumps(change.to_json())) == data
    assert "hush" not in text + json.dumps(data)


def test_a_file_with_bytes_that_are_no_text_can_be_shown_too(host: Host) -> None:
    host.at(CONF).parent.mkdir()
    host.at(CONF).write_bytes(b"# caf\xe9\n")
    change = Write(CONF, host.read(CONF) or "")
    assert "7 bytes" in change.describe()
    json.dumps(change.to_json()).encode()


@pytest.mark.parametrize(
    "change",
    [Write(CONF, "new", 0o600), Remove(CONF), Remove(Path("/empty"), only_if_empty=True), Run(("true",), "nothing")],
)
def test_doing_it_twice_is_as_good_as_once(change: Change, host: Host) -> None:
    host.write(CONF, "old")
    host.make_dir(Path("/empty"))
    change.apply(host, Report())
    once = sorted((p, p.stat().st_mode) for p in host.root.rglob("*"))
    change.apply(host, Report())
    assert sorted((p, p.stat().st_mode) for p in host.root.rglob("*")) == once


def test_writing_and_removing(host: Host) -> None:
    Write(CONF, "new", 0o640).apply(host, Report())
    assert (host.read(CONF), host.mode(CONF)) == ("new", 0o640)
    Remove(Path("/etc"), only_if_empty=True).apply(host, Report())
    assert host.exists(CONF)
    Remove(CONF).apply(host, Report())
    Remove(Path("/etc"), only_if_empty=True).apply(host, Report())
    assert not host.exists(Path("/etc"))


def test_a_command_that_fails_stops_everything_after_it(host: Host) -> None:
    with pytest.raises(CommandFailed):
        Run(("false",), "fail").apply(host, Report())


# What the user sees of it


def test_progress_goes_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    report = Lines()
    report.begin(Remove(CONF))
    report.note("note")
    report.warn("careful")
    with report.bytes("weights", 2048) as advance:
        advance(1024)
        advance(1024)
    shown = capfd.readouterr()
    assert shown.out == ""
    before, _, bytes_line = shown.err.partition("  weights: ")
    assert before == "  remove /etc/app.conf\n  note\nwarning: careful\n"
    assert re.fullmatch(r"2\.0 KiB in \S+ s \(.*/s\)\n", bytes_line)


def test_many_files_of_one_directory_are_one_line_at_the_first_of_them() -> None:
    many = [Write(Path(f"/opt/runtime/{number}.py"), "x" * 512) for number in range(6)]
    few = [Write(Path(f"/etc/{number}"), "") for number in range(4)]
    line = "write 6 files in /opt/runtime (3.0 KiB)"
    said = [each.describe() if each else None for each in told([few[0], *many[:3], Remove(CONF), *many[3:], *few[1:]])]
    assert said == [
        "write /etc/0 (0644, 0 bytes)", line, None, None, "remove /etc/app.conf", None, None, None,
        *(f"write /etc/{number} (0644, 0 bytes)" for number in (1, 2, 3)),
    ]  # fmt: skip


def test_quiet_says_only_what_needs_action(capfd: pytest.CaptureFixture[str]) -> None:
    report = choose(quiet=True)
    report.begin(Remove(CONF))
    report.done(Remove(CONF))
    report.note("note")
    with report.bytes("weights", 1) as advance:
        advance(1)
    report.warn("careful")
    assert capfd.readouterr() == ("", "warning: careful\n")


def test_without_a_terminal_there_is_no_bar() -> None:
    assert type(choose(quiet=False)) is Lines
    assert issubclass(Bars, Lines)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536 * 1024**2, "1.5 GiB"), (2 * 1024**4, "2.0 TiB")],
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text
