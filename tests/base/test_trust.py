"""What root may take from a path: only what nobody else could have put there."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from installer.base.host import Host
from installer.base.trust import of_others

FILE = Path("/etc/keys/tls/key")


@pytest.fixture
def keys(host: Host) -> Host:
    host.at(FILE.parent).mkdir(parents=True)
    host.at(FILE).write_text("secret")
    host.at(FILE).chmod(0o600)
    return host


def test_what_is_roots_alone_is_nobody_elses(keys: Host) -> None:
    assert of_others(keys, FILE) is None


@pytest.mark.parametrize("target", [str(FILE), "keys/tls/key", "../etc/keys/./tls/../tls/key"])
def test_a_link_of_roots_own_to_it_is_followed(keys: Host, target: str) -> None:
    keys.at(Path("/etc/live")).symlink_to(target)
    assert of_others(keys, Path("/etc/live")) is None
    keys.at(Path("/etc/keys/tls")).chmod(0o775)
    assert of_others(keys, Path("/etc/live")) == Path("/etc/keys/tls")


@pytest.mark.parametrize("part", ["/", "/etc", "/etc/keys", "/etc/keys/tls", "/etc/keys/tls/key"])
@pytest.mark.parametrize("mode", [0o720, 0o702])
def test_each_part_of_the_way_counts(keys: Host, part: str, mode: int) -> None:
    keys.at(Path(part)).chmod(mode)
    assert of_others(keys, FILE) == Path(part)


@pytest.mark.root
@pytest.mark.parametrize("part", ["/etc", "/etc/keys/tls", "/etc/keys/tls/key", "/etc/live"])
def test_whoever_owns_a_part_can_change_it(keys: Host, part: str) -> None:
    keys.at(Path("/etc/live")).symlink_to("keys/tls/key")
    os.chown(keys.at(Path(part)), 65534, 65534, follow_symlinks=False)
    assert of_others(keys, Path("/etc/live")) == Path(part)


def test_where_only_owners_may_replace_a_file_everybody_may_write(keys: Host) -> None:
    keys.at(FILE.parent).chmod(0o1777)
    assert of_others(keys, FILE) is None


def test_what_is_read_only_here_may_be_anothers_elsewhere(keys: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the sandbox in which doctor looks, and in which a change is taken back."""
    keys.at(FILE.parent).chmod(0o777)
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_RDONLY))
    assert of_others(keys, FILE) == FILE.parent
    assert of_others(keys, FILE, or_read_only=True) is None


@pytest.mark.root
def test_a_link_is_not_fixed_by_where_it_leads(keys: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    link, fixed = keys.at(Path("/etc/live")), keys.at(FILE)
    link.symlink_to("keys/tls/key")
    os.chown(link, 65534, 65534, follow_symlinks=False)
    real = os.statvfs
    read_only = SimpleNamespace(f_flag=os.ST_RDONLY)
    monkeypatch.setattr(os, "statvfs", lambda path: read_only if Path(path).resolve() == fixed else real(path))
    assert of_others(keys, Path("/etc/live"), or_read_only=True) == Path("/etc/live")


def test_links_in_a_circle_lead_nowhere(keys: Host) -> None:
    keys.at(Path("/etc/a")).symlink_to("b")
    keys.at(Path("/etc/b")).symlink_to("a")
    assert of_others(keys, Path("/etc/a")) in (Path("/etc/a"), Path("/etc/b"))


def test_what_is_not_there_is_an_error(keys: Host) -> None:
    with pytest.raises(FileNotFoundError):
        of_others(keys, Path("/etc/keys/none"))
