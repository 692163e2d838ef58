"""A verb that looks, on all hosts of a service: in which words each is asked, and how that is told."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from click.testing import CliRunner

from installer.base.errors import Refused
from installer.cli import cli
from installer.group.everywhere import Heard
from installer.group.member import Ran
from installer.spec.group import Group, Peer

GROUP = Group("mine", (Peer("gpu1"), Peer("gpu2", out=True)))


class Asked:
    def __init__(self) -> None:
        self.words: list[str] = []
        self.introduced = False
        self.heard = Heard({"gpu1": Ran(0, "one\ntwo\n"), "gpu2": Ran(0, "\x1b]0;x\x07three\n")}, {})

    def ask(self, peers: Sequence[Peer], service: str, words: Sequence[str], *_: object) -> Heard:
        assert [peer.name for peer in peers] == ["gpu1", "gpu2"]
        self.words = [*words]
        return self.heard

    def introduce(self, *_: object) -> None:
        assert self.words, "each host has done it by then"
        self.introduced = True


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    made = Asked()
    monkeypatch.setattr("installer.group.everywhere.ask", made.ask)
    monkeypatch.setattr("installer.group.watched.introduce_all", made.introduce)
    monkeypatch.setattr("installer.group.change.group_of", lambda host, service: GROUP)
    monkeypatch.setattr("installer.spec.records.services", lambda host: ["qwen3vl"])
    return made


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("status --all-hosts", "status --service qwen3vl"),
        ("status --all-hosts --service coder", "status --service coder --service coder"),
        ("status coder --all-hosts", "status --service coder coder"),
        ("doctor --all-hosts", "doctor --service qwen3vl"),
        ("logs --all-hosts coder -n 5", "logs --service coder coder -n 5"),
        ("logs -n 5 --all-hosts --since -1h", "logs --service qwen3vl -n 5 --since -1h"),
        ("list --all-hosts", "list"),
        ("monitor status --all-hosts", "monitor status"),
        ("monitor enable --all-hosts --runbooks https://w/a", "monitor enable --runbooks https://w/a"),
        ("monitor disable --discard-edits --all-hosts", "monitor disable --discard-edits"),
    ],
)
def test_each_host_is_asked_in_the_words_that_were_typed(typed: str, words: str, asked: Asked) -> None:
    done = CliRunner().invoke(cli, typed.split())
    assert (asked.words, done.exit_code) == (words.split(), 0), done.output
    assert asked.introduced == ("enable" in typed or "disable" in typed)
    lines = done.output.splitlines()
    assert lines[:2] == ["gpu1: one", "gpu1: two"]
    assert "\x1b" not in done.output
    assert "\x07" not in done.output


def test_the_worst_is_how_it_ends_and_a_lost_host_is_said(asked: Asked) -> None:
    asked.heard = Heard({"gpu1": Ran(3, "down\n")}, {})
    assert CliRunner().invoke(cli, ["status", "--all-hosts"]).exit_code == 3
    asked.heard = Heard({"gpu1": Ran(0, "{}")}, {"gpu2": Refused("gpu2: it cannot be reached")})
    done = CliRunner().invoke(cli, ["status", "--all-hosts", "--json"])
    assert done.exit_code == 8
    assert json.loads(done.stdout) == {"hosts": {"gpu1": {}}}
    assert "gpu2: it cannot be reached" in done.stderr
    asked.heard = Heard({}, {"gpu2": Refused("gpu2: it cannot be reached")})
    assert isinstance(CliRunner().invoke(cli, ["status", "--all-hosts"]).exception, Refused)


@pytest.mark.parametrize("typed", ["status --watch", "logs -f", "list -w"])
def test_what_is_watched_is_one_host(typed: str, asked: Asked) -> None:
    done = CliRunner().invoke(cli, [*typed.split(), "--all-hosts"])
    assert "what is watched is one host" in str(done.exception)
    assert asked.words == []


def test_usage_is_a_sum(asked: Asked) -> None:
    def used(name: str, requests: int, last: str | None, *days: str) -> dict[str, object]:
        spent = {"requests": requests, "errors": 1, "refused": 0, "prompt_tokens": 10 * requests}
        spent |= {"cached_tokens": 0, "completion_tokens": 5}
        return {**spent, "key": name, "last_used": last, "days": [{**spent, "day": day} for day in days]}

    def said(*keys: object, counted: bool = True) -> Ran:
        told = {"service": "qwen3vl", "since": "2026-11-01", "tokens_are_counted": counted, "keys": keys}
        return Ran(0, json.dumps(told))

    ours = said(used("a", 3, "2026-11-02T00:00:00Z", "2026-11-01", "2026-11-02"), used("b", 9, None))
    asked.heard = Heard({"gpu1": ours, "gpu2": said(used("a", 4, "2026-11-03T00:00:00Z", "2026-11-02"))}, {})
    done = CliRunner().invoke(cli, ["usage", "--all-hosts", "--since", "7d", "--json"])
    assert asked.words == ["usage", "--service", "qwen3vl", "--since", "7d", "--json"]
    found = json.loads(done.stdout)
    assert [(key["key"], key["requests"], key["errors"]) for key in found["keys"]] == [("b", 9, 1), ("a", 7, 2)]
    of_a = found["keys"][1]
    assert of_a["last_used"] == "2026-11-03T00:00:00Z"
    assert [(day["day"], day["requests"]) for day in of_a["days"]] == [("2026-11-01", 3), ("2026-11-02", 7)]
    asked.heard = Heard({"gpu1": ours, "gpu2": Ran(0, '{"keys": 7}')}, {})
    assert "nobody understands" in str(CliRunner().invoke(cli, ["usage", "--all-hosts"]).exception)
