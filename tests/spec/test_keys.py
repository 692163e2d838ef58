"""API keys: their form in the unit, and which are good enough to be known by their digest."""

from __future__ import annotations

import hashlib
import importlib
import string
import sys
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from installer.base.assets import RUNTIME
from installer.base.errors import UsageError
from installer.spec.keys import (
    Key,
    check_name,
    check_plain,
    digest,
    duration,
    generate,
    in_seconds,
    parse,
    revoke,
    rotate,
)
from installer.units.syntax import quote_exec, split_exec

sys.path.append(str(RUNTIME))  # where the launcher finds its neighbours when it runs
LAUNCHER: Any = importlib.import_module("vllm_launcher")

HEX = hashlib.sha256(b"x").hexdigest()
PASTED = "sk-abc-DEF-0123456=="
KEY_CHARACTERS = "".join(sorted(set(string.ascii_letters + string.digits + string.punctuation) - set(":@")))

NAMES = st.from_regex(r"[a-z0-9_-]{1,32}", fullmatch=True)
ROLES = st.sampled_from(["metrics", "inference", "admin"])
EXPIRIES = st.one_of(st.none(), st.datetimes().map(lambda t: t.strftime("%Y-%m-%dT%H:%M:%SZ").rjust(20, "0")))


def good(text: str) -> bool:
    try:
        return check_plain(text) == text
    except UsageError:
        return False


PLAIN = st.text(KEY_CHARACTERS, min_size=20, max_size=80).filter(good)


@given(NAMES, ROLES, EXPIRIES, st.one_of(st.none(), PLAIN))
def test_a_key_survives_its_form_in_the_unit(name: str, role: str, expiry: str | None, plain: str | None) -> None:
    key = Key(name, digest(plain) if plain else HEX, role, expiry, plain)
    assert parse(key.argument) == key
    assert split_exec(quote_exec(["--api-key", key.argument])) == ["--api-key", key.argument]


@pytest.mark.parametrize(
    ("argument", "key"),
    [
        (f"sha256:{HEX}", Key("default", HEX)),
        (f"ana=sha256:{HEX}", Key("ana", HEX)),
        (f"ana:metrics=sha256:{HEX}@2030-01-02T03:04:05Z", Key("ana", HEX, "metrics", "2030-01-02T03:04:05Z")),
        (f"ana=sha256:{HEX.upper()}", Key("ana", HEX)),
        (PASTED, Key("default", digest(PASTED), plain=PASTED)),
        (
            f"ops:admin={PASTED}@2030-01-02T03:04:05Z",
            Key("ops", digest(PASTED), "admin", "2030-01-02T03:04:05Z", PASTED),
        ),
        ("sk-abcdefghijklmnopq=", Key("default", digest("sk-abcdefghijklmnopq="), plain="sk-abcdefghijklmnopq=")),
    ],
)
def test_forms_that_a_person_may_write(argument: str, key: Key) -> None:
    assert parse(argument) == key


@pytest.mark.parametrize(
    "argument",
    ["", "=", "ana=@", f"sha256:{HEX[:-1]}", f"sha256:{HEX}0", "short", f"ana:root=sha256:{HEX}", "a b",
     f"sha256:{HEX}@tomorrow", f"ana=sha256:{HEX}@2030-01-02", f"sha256:{HEX}@2030-02-30T00:00:00Z",
     f"sha256:{HEX}@2030-01-02T24:00:00Z", "sha512:00", "sha256:0", f"ANA=sha256:{HEX}", "x\n"],
)  # fmt: skip
def test_what_is_neither_digest_nor_key_is_refused_without_showing_it(argument: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(argument)
    assert not argument.strip() or len(argument) < 4 or argument not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    "plain",
    ["", "short", "a" * 40, "ab" * 20, "abcdefghi" * 5, "x y" * 20, "ü" * 30, "sk-" + "0123456789abcdef" * 40,
     "a:b" * 20, "a" * 513, "password123456789012345678901234", "Summer2024!Summer2024!Autumn2025",
     "sk-correct-horse-battery-staple", "sk-my-own-0123456789-abcdefghijklmnop",
     "sk-user@host-0123456789abcdef", "sk-0123456789abcdef\nX: y"],
)  # fmt: skip
def test_a_weak_or_unusable_key_is_refused_without_showing_it(plain: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_plain(plain)
    assert len(plain) < 6 or plain not in caught.value.message + caught.value.hint


def test_a_made_key_is_strong_and_never_the_same() -> None:
    keys = {generate("qwen3vl") for _ in range(100)}
    assert len(keys) == 100
    assert all(key.startswith("sk-qwen3vl-") and len(key) == len("sk-qwen3vl-") + 43 and good(key) for key in keys)


NOW, LATER, PAST = "2030-01-01T00:00:00Z", "2030-01-02T00:00:00Z", "2029-12-31T23:59:59Z"


def test_old_keys_keep_the_names_they_were_given() -> None:
    held: tuple[Key, ...] = (Key("default", digest("0")),)
    seen: dict[str, str] = {}
    for number in range(1, 5):
        held = rotate(held, Key("default", digest(str(number))), LATER, NOW)
        for key in held:
            if key.name != "default":
                assert seen.setdefault(key.digest, key.name) == key.name, "a key was renamed"
                assert key.is_grace
    assert [seen[digest(str(n))] for n in range(4)] == [
        "default-old",
        "default-old-2",
        "default-old-3",
        "default-old-4",
    ]
    held = rotate(held, Key("default", digest("new")), None, LATER)
    assert [key.name for key in held] == ["default"], "all of them have ended"


def test_an_old_key_ends_when_it_was_to_end_anyway() -> None:
    new, until = Key("default", digest("new")), "2030-06-01T00:00:00Z"
    olds = [Key("default", HEX, expiry=expiry) for expiry in (None, LATER, "2031-01-01T00:00:00Z")]
    assert [rotate([old], new, until, NOW)[1].expiry for old in olds] == [until, LATER, until]


@pytest.mark.parametrize(
    ("beside", "is_last"),
    [
        (Key("guest", digest("g")), False),
        (Key("guest", digest("g"), "admin", LATER), False),
        (Key("board", digest("g"), "metrics"), True),
        (Key("guest", digest("g"), expiry=PAST), True),
        (Key("guest", digest("g"), expiry=NOW), True),
        (Key("probe", digest("g")), True),
    ],
)
def test_the_last_key_that_can_ask_is_not_revoked(beside: Key, is_last: bool) -> None:
    held = (Key("default", HEX), beside)
    if not is_last:
        assert revoke(held, "default", NOW) == (beside,)
        return
    with pytest.raises(UsageError, match="'default' is the last key that can ask the model"):
        revoke(held, "default", NOW)


def test_a_key_that_is_over_says_so() -> None:
    assert Key("a", HEX, expiry=PAST.replace("2029", "2019")).is_over
    assert not Key("a", HEX, expiry="2099-01-01T00:00:00Z").is_over
    assert not Key("a", HEX).is_over
    assert not Key("default-old", HEX).is_grace, "without an end it is a key of somebody's choice"


def test_the_probe_key_is_not_said_to_be_missing() -> None:
    with pytest.raises(UsageError, match="the probe key stays") as caught:
        revoke((Key("default", HEX), Key("probe", digest("p"))), "probe", NOW)
    assert caught.value.hint == "keys that can be revoked: default"


PARTS = st.sampled_from(
    ["default", "ana", "x" * 40, ":", ":admin", ":metrics", ":root", "=", "==", "sha256:", HEX, HEX.upper(), HEX[1:],
     "sk-0123456789abcdef", "short", "@2030-01-02T03:04:05Z", "@2030-13-02T03:04:05Z", "@",
     "A", " ", "é", "\n", '"', "%", "$"]
)  # fmt: skip


@given(st.lists(PARTS, max_size=6).map("".join))
def test_the_launcher_reads_every_key_as_we_do(argument: str) -> None:
    try:
        ours = parse(argument)
    except UsageError:
        with pytest.raises(LAUNCHER.Refused):
            LAUNCHER.parse_key(argument, 1)
        return
    theirs = LAUNCHER.parse_key(argument, 1)
    assert (ours.name, ours.role, ours.digest, ours.expiry or "-") == theirs


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("10m", 600), ("36h", 129600), ("7d", 604800), ("1", 1), ("9999999s", 9999999)],
)
def test_a_duration_is_read(text: str, seconds: int) -> None:
    assert in_seconds(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "0", "0d", "m", "1w", "1.5h", "-1s", "1h30m", "\N{ARABIC-INDIC DIGIT ONE}s", "12345678"]
)
def test_what_is_no_duration_is_refused_with_examples(text: str) -> None:
    with pytest.raises(UsageError, match="is not a duration") as refused:
        in_seconds(text)
    assert refused.value.hint == "write 90s, 10m, 36h or 7d"


def test_an_old_key_is_kept_for_a_year_at_most() -> None:
    assert duration("366d") == timedelta(days=366)
    with pytest.raises(UsageError, match="527041m is longer than a year"):
        duration("527041m")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        *((name, "cannot be the name of a key") for name in ("", "A", "a b", "a\n", "x" * 33)),
        ("probe", "is vllm-install's own"),
    ],
)
def test_a_key_that_could_not_be_called_so_is_refused(name: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        check_name(name)


@pytest.mark.parametrize("name", ["a", "x" * 32, "probe-2", "guest_1"])
def test_a_key_may_be_called_so(name: str) -> None:
    assert check_name(name) == name
