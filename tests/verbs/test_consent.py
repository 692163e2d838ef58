"""What takes something away asks first: nobody there to ask is a no, whatever stands on standard input."""

from __future__ import annotations

import io
import os
import sys

import click
import pytest

from installer.base.errors import Exit, InstallError, Interrupted, Refused
from installer.base.host import Host
from installer.base.layout import Layout
from installer.spec.records import managed
from installer.units.render import unit
from installer.verbs.options import agree
from tests.kit.samples import tree
from tests.verbs import test_records
from tests.verbs.test_records import answers

host = test_records.host
GOOD = Layout("good")
DESTROYING = (
    "uninstall --service good", "uninstall --purge --service good", "eject --service good", "prune", "models prune",
)  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_nothing_goes(host: Host) -> None:
    proved = managed(host, GOOD).proved
    assert proved
    host.write(GOOD.unit, unit(proved, GOOD))
    host.write(GOOD.engines / "0123456789abcdef/old", "")  # which nobody needs, nor the weights
    host.write(GOOD.hub / "models--a--b/blobs/c", "")
    before = tree(host.root)
    found = answers(host, DESTROYING)
    refused = {line: (code, "run the same command with --yes" in err) for line, (code, _, err) in found.items()}
    assert refused == dict.fromkeys(DESTROYING, (Exit.REFUSED, True))
    assert tree(host.root) == before


def test_what_was_typed_ahead_is_no_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    with pytest.raises(Refused, match="no terminal to ask on"):
        agree("Sure?", (), yes=False)
    agree("Sure?", (), yes=True)


@pytest.mark.parametrize("end", [click.Abort(), Interrupted("SIGINT")], ids=["Ctrl-D", "Ctrl-C"])
def test_a_question_that_is_left_changed_nothing(monkeypatch: pytest.MonkeyPatch, end: BaseException) -> None:
    def leave(*_: object, **__: object) -> bool:
        raise end

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(click, "confirm", leave)
    with pytest.raises(InstallError, match="nothing was changed") as caught:
        agree("Sure?", (), yes=False)
    assert caught.value.exit_code == Exit.INTERRUPTED


def test_who_may_not_do_it_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    monkeypatch.setattr(click, "confirm", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(Refused, match="only root can change") as caught:
        agree("Sure?", (), yes=False)
    assert caught.value.hint == "run the command as root (sudo)"


# What is said of a change before it is one


def test_an_upgrade_says_what_it_cannot_do_and_when_it_goes_back(host: Host) -> None:
    host.write(Layout("tiny").settings_file, "MODEL_NAME=builtin:tiny\nENGINE=cpu\n")
    lines = ("--revision foo", "--vllm-version 0.31.0", "--vllm-version 0.32.0")
    found = answers(host, [f"upgrade {line} --dry-run --service tiny" for line in lines])
    revision, older, same = found.values()
    assert revision[0] == Exit.USAGE
    assert "builtin:tiny has no revisions: it comes from no hub" in revision[2]
    assert "vllm-install set MODEL_NAME=foo" in revision[2]
    assert "vLLM 0.31.0 is older than 0.32.0, which is set now" in older[2]
    assert "is older" not in same[2]
