"""What root may take from a path: only what nobody else could have put there."""

from __future__ import annotations

import os
from pathlib import Path

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


def test_links_in_a_circle_lead_nowhere(keys: Host) -> None:
    keys.at(Path("/etc/a")).symlink_to("b")
    keys.at(Path("/etc/b")).symlink_to("a")
    assert of_others(keys, Path("/etc/a")) in (Path("/etc/a"), Path("/etc/b"))


def test_what_is_not_there_is_an_error(keys: Host) -> None:
    with pytest.raises(FileNotFoundError):
        of_others(keys, Path("/etc/keys/none"))
