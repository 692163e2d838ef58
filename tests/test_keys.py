"""API keys: their form in the unit, and which are good enough to be known by their digest."""

from __future__ import annotations

import hashlib
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from installer.errors import UsageError
from installer.keys import Key, check, digest, generate, parse
from installer.render import quote_exec, split_exec

HEX = hashlib.sha256(b"x").hexdigest()
KEY_CHARACTERS = "".join(sorted(set(string.ascii_letters + string.digits + string.punctuation) - set(":@")))

NAMES = st.from_regex(r"[a-z0-9_-]{1,32}", fullmatch=True)
ROLES = st.sampled_from(["metrics", "inference", "admin"])
EXPIRIES = st.one_of(st.none(), st.datetimes().map(lambda t: t.strftime("%Y-%m-%dT%H:%M:%SZ").rjust(20, "0")))


def good(text: str) -> bool:
    try:
        return check(text) == text
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
        ("x", Key("default", HEX, plain="x")),
        ("sk-abc-DEF==", Key("default", digest("sk-abc-DEF=="), plain="sk-abc-DEF==")),
        ("ops:admin=x@2030-01-02T03:04:05Z", Key("ops", HEX, "admin", "2030-01-02T03:04:05Z", "x")),
        ("sk-abcdef=", Key("default", digest("sk-abcdef="), plain="sk-abcdef=")),
    ],
)
def test_forms_that_a_person_may_write(argument: str, key: Key) -> None:
    assert parse(argument) == key


@pytest.mark.parametrize(
    "argument",
    ["", "=", "ana=@", f"sha256:{HEX[:-1]}", f"sha256:{HEX}0", f"sha256:{HEX.upper()}", f"ana:root=sha256:{HEX}", "a b",
     f"sha256:{HEX}@tomorrow", f"ana=sha256:{HEX}@2030-01-02", "sha512:00", "sha256:0", f"ANA=sha256:{HEX}", "x\n"],
)  # fmt: skip
def test_what_is_neither_digest_nor_key_is_refused_without_showing_it(argument: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(argument)
    assert not argument.strip() or len(argument) < 4 or argument not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    "plain",
    ["", "short", "a" * 40, "ab" * 20, "abcdefghi" * 5, "x y" * 20, "ü" * 30, "sk-" + "0123456789abcdef" * 40,
     "a:b" * 20,
     "sk-user@host-0123456789abcdef", "sk-0123456789abcdef\nX: y", "=0123456789abcdefghijkl"],
)  # fmt: skip
def test_a_weak_or_unusable_key_is_refused_without_showing_it(plain: str) -> None:
    with pytest.raises(UsageError) as caught:
        check(plain)
    assert len(plain) < 6 or plain not in caught.value.message + caught.value.hint


def test_a_made_key_is_strong_and_never_the_same() -> None:
    keys = {generate("qwen3vl") for _ in range(100)}
    assert len(keys) == 100
    assert all(key.startswith("sk-qwen3vl-") and len(key) == len("sk-qwen3vl-") + 43 and good(key) for key in keys)
