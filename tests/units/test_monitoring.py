"""The key of who watches every service: known by its digest, and not asked for where nobody watches."""

from __future__ import annotations

import pytest

from installer.base.host import Host
from installer.spec.keys import TO_BE_MADE, Key, digest
from installer.units import monitoring


def test_who_may_not_read_the_key_sees_that_there_is_one(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    assert monitoring.key(host) is None
    host.write(monitoring.KEY, "sk-of-the-watcher\n", 0o600)
    assert monitoring.key(host) == Key("monitor", digest("sk-of-the-watcher"), "metrics")

    def closed(*_: object) -> str:
        raise PermissionError

    monkeypatch.setattr(Host, "word", closed)
    assert monitoring.key(host) == Key("monitor", TO_BE_MADE, "metrics")
