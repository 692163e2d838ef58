"""What is typed on one host, as every host of the group is given it: word by word, and no key among them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import click
import pytest

from installer.base.errors import Exit, Refused, UsageError
from installer.base.host import Host
from installer.base.report import Report
from installer.cli import cli
from installer.group import roster
from installer.group.everywhere import Heard
from installer.group.member import Ran
from installer.group.reach import Lost, Team
from installer.spec.group import Group, Peer
from installer.spec.values import REPLICAS, SPAN
from installer.verbs import all_hosts, over


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The words for each host, of a service that is of a group; nothing is done with them."""
    found: list[tuple[str, ...]] = []
    group = Group("mine", (Peer("gpu1"), Peer("gpu2")))
    monkeypatch.setattr("installer.group.change.group_of", lambda host, service: group)
    monkeypatch.setattr(over, "_over", lambda call, *_: found.append(call.words))
    return found


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("set-context 32k", "set-context --service qwen3vl --this-host-only -- 32k"),
        ("set-context -q --json 32k", "set-context --service qwen3vl --this-host-only -- 32k"),
        ("set PORT=8001 A=;reboot", "set --service qwen3vl --this-host-only -- PORT=8001 A=;reboot"),
        ("set coder PORT=8001", "set --service coder --this-host-only -- coder PORT=8001"),
        ("set PORT=1 -- --seed 1", "set --service qwen3vl --this-host-only -- PORT=1 --seed 1"),
        ("set --port 8001", "set --service qwen3vl --this-host-only --port 8001"),
        ("upgrade --vllm-version=0.32.0 coder", "upgrade --service coder --this-host-only --vllm-version 0.32.0"),
        ("upgrade --revision -", "upgrade --service qwen3vl --this-host-only --revision -"),
        ("rollback", "rollback --service qwen3vl --this-host-only"),
        ("deploy --hosts gpu1,gpu2 --offline", "deploy --service qwen3vl --this-host-only --offline"),
        ("deploy --online --modelscope", "deploy --service qwen3vl --this-host-only --online --modelscope"),
        ("deploy --api-key-file /x -- --seed 1", "deploy --service qwen3vl --this-host-only -- --seed 1"),
        ("uninstall --purge -y", "uninstall --service qwen3vl --this-host-only --purge"),
        ("keys coder revoke team-a", "keys revoke --service coder --this-host-only -- team-a"),
        ("keys limit a --requests 6/min", "keys limit --service qwen3vl --this-host-only --requests 6/min -- a"),
        ("set-apikey --name a sk-secret", "set-apikey --service qwen3vl --this-host-only --name a"),
    ],
)
def test_what_is_typed_reaches_every_host_word_by_word(
    typed: str, words: str, calls: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.main(typed.split(), prog_name="vllm-install", standalone_mode=False)
    assert [" ".join(found) for found in calls] == [words]


def test_those_words_are_understood_there(calls: list[tuple[str, ...]]) -> None:
    for typed in (
        ["set", "SERVED_MODEL_NAME=a b", "X=$(id)"],
        ["deploy", "--served-model-name", "-x y", "--", "--seed", "1"],
    ):
        cli.main(typed, prog_name="vllm-install", standalone_mode=False)
    first, second = calls
    assert _params("set", first[1:])["assignments"] == ("SERVED_MODEL_NAME=a b", "X=$(id)")
    assert _params("deploy", second[1:])["served_model_name"] == "-x y"
    assert _params("deploy", second[1:])["vllm_args"] == ("--seed", "1")


def _params(verb: str, words: tuple[str, ...]) -> dict[str, Any]:
    return cli.commands[verb].make_context(verb, list(words)).params


def test_on_this_host_only_nothing_goes_anywhere(calls: list[tuple[str, ...]], tmp_path: Path) -> None:
    with pytest.raises((click.UsageError, UsageError)):
        cli.main(["set", "--this-host-only"], prog_name="vllm-install", standalone_mode=False)
    assert calls == []


@pytest.mark.parametrize("name", ["-oProxyCommand=id", "gpu1,localhost", "gpu1;id", ""])
def test_a_name_that_is_no_hosts_is_refused_before_anything_is_reached(name: str, calls: list[tuple[str, ...]]) -> None:
    with pytest.raises(UsageError, match="--hosts: "):
        cli.main(["deploy", f"--hosts={name}"], prog_name="vllm-install", standalone_mode=False)
    assert calls == []


def test_what_is_for_all_hosts_is_said_to_none_of_them_by_itself(calls: list[tuple[str, ...]]) -> None:
    typed = "deploy --hosts gpu1,gpu2 --mode span --peer-network 10.0.0.0/24"
    cli.main(typed.split(), prog_name="vllm-install", standalone_mode=False)
    assert [" ".join(found) for found in calls] == ["deploy --service qwen3vl --this-host-only"]
    with pytest.raises(UsageError, match="are for several hosts"):
        cli.main(["deploy", "--this-host-only", "--mode", "span"], prog_name="vllm-install", standalone_mode=False)
    with pytest.raises(UsageError, match="--peer-network: expected an IPv4 network"):
        cli.main(["deploy", "--peer-network", "gpu1"], prog_name="vllm-install", standalone_mode=False)


@pytest.mark.parametrize(
    ("mode", "peers", "said"),
    [
        (None, 2, ""), (SPAN, 2, ""), (REPLICAS, 2, "is of mode span already"), (None, 3, "no other joins them"),
    ],
)  # fmt: skip
def test_hosts_of_one_model_stay_what_they_are(mode: str | None, peers: int, said: str) -> None:
    before = Group("mine", (Peer("gpu1"), Peer("gpu2")), SPAN, 1)
    now = replace(before, peers=tuple(Peer(f"gpu{number}") for number in range(1, peers + 1)))
    with pytest.raises(UsageError, match=said) if said else nullcontext():
        over.check_stays("qwen3vl", now, mode, before)


def test_hosts_of_one_model_do_not_answer_for_one_another() -> None:
    group = Group("mine", (Peer("gpu1"), Peer("gpu2")), SPAN)
    call = cast("over._Call", SimpleNamespace(typed={"gateway_hosts": "auto"}))
    with pytest.raises(UsageError, match="--gateway-hosts is for hosts that each serve by themselves"):
        over._span(call, group, Team([], {}), {})


@pytest.mark.parametrize("verb", [roster.drain, roster.remove])
def test_no_host_of_one_model_is_taken_out(verb: Callable[..., None]) -> None:
    group = Group("mine", (Peer("gpu1"), Peer("gpu2")), SPAN, 1)
    with pytest.raises(Refused, match="each of these hosts holds a part of the model"):
        verb(group, "gpu2", "qwen3vl", Host(), Report())


def on_all_hosts(monkeypatch: pytest.MonkeyPatch, words: str, *ran: Ran) -> Exit:
    monkeypatch.setattr(all_hosts, "heard", lambda *_: Heard({f"gpu{n}": each for n, each in enumerate(ran, 1)}, {}))
    with pytest.raises(SystemExit) as ended:
        cli.main([*words.split(), "--all-hosts"], prog_name="vllm-install", standalone_mode=False)
    return Exit(ended.value.code)


def test_what_a_host_shows_stands_behind_its_name_and_does_nothing_to_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = Ran(0, "serving\x1b]0;mine\x07\rgpu1: gone\n")
    assert on_all_hosts(monkeypatch, "status", Ran(0, "serving\n"), said) is Exit.DONE
    shown = capsys.readouterr().out
    assert [line.split(" ")[0] for line in shown.splitlines()] == ["gpu1:", "gpu2:", "gpu2:"]
    assert not {"\x1b", "\r", "\x07"} & set(shown)


@pytest.mark.parametrize("out", ["", "{", "[" * 100_000])
def test_a_host_that_says_no_data_is_named(monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    with pytest.raises(Lost, match="gpu2: it says what nobody understands"):
        on_all_hosts(monkeypatch, "status --json", Ran(0, "{}"), Ran(0, out))


def test_a_status_that_is_none_of_ours_hides_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    faults = Ran(Exit.FAULTS_FOUND, "")
    assert on_all_hosts(monkeypatch, "doctor", faults, Ran(0, "")) is Exit.FAULTS_FOUND
    assert on_all_hosts(monkeypatch, "doctor", faults, Ran(256, "")) is not Exit.DONE
