"""What status says of a service that does not run, and what it ends with: as systemctl status does."""

from __future__ import annotations

import dataclasses

import pytest
from click.testing import CliRunner

from installer.base.errors import Exit
from installer.base.host import Host
from installer.base.layout import Layout
from installer.diagnosis.scene import Scene
from installer.look import status
from installer.verbs import look

TIMES = {"ActiveEnterTimestamp": "when it last came up", "StateChangeTimestamp": "when it went down"}


class Seen(Scene):
    """A service of which systemd says this."""

    unit: dict[str, str] = {}  # type: ignore[assignment]  # noqa: RUF012


@pytest.mark.parametrize(
    ("active", "since", "code"),
    [
        ("active", "when it last came up", Exit.DONE),
        ("activating", "when it went down", Exit.DONE),
        ("inactive", "when it went down", Exit.NOT_RUNNING),
        ("failed", "when it went down", Exit.NOT_RUNNING),
        ("", "when it went down", Exit.NOT_RUNNING),  # systemd is not there
    ],
)
def test_a_service_that_does_not_run(
    host: Host, monkeypatch: pytest.MonkeyPatch, active: str, since: str, code: Exit
) -> None:
    monkeypatch.setattr(Seen, "unit", {"ActiveState": active, "SubState": "x" if active else "", **TIMES})
    found = status.of(Seen(host, Layout("qwen3vl"), None, None))
    assert found.active == (f"{active} (x)" if active else "unknown")
    assert found.since == since
    monkeypatch.setattr(status, "status", lambda *_: dataclasses.replace(found))
    assert CliRunner().invoke(look.status, ["qwen3vl"]).exit_code == code
