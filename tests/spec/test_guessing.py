"""Which keys a cracker would have: words, rows of keys, repetitions, dates; and which were made by chance."""

from __future__ import annotations

import hashlib
import random
import string
import uuid

import pytest

from installer.spec import guessing
from installer.spec.guessing import is_first_guess, is_weak

GUESSED = (
    "password123456789012345678901234", "P4ssw0rd-f0r-the-Vll4-s3rver!", "P@ssw0rdP@ssw0rd2025!!",
    "Summer2024!Summer2024!Autumn2025", "sk-correct-horse-battery-staple", "ThisIsMyVerySecretApiKey2024",
    "woaini520woaini1314woaini", "nihaozhongguowoaibeijingtiananmen", "qwertyuiopasdfghjklzxcvbnm1234",
    "qazwsxedcrfvtgbyhnujmikolp1234", "sk-1234567890abcdefghijklmnopqrstuvwxyz", "Zx9!Zx9!Zx9!Zx9!Zx9!Zx9!",
    "admin-admin-admin-admin-1", "zyxwvutsrqponmlkjihgfedcba9876543210", "x" * 512, "2019-2020-2021-2022-2023-2024",
    "my-super-secret-api-key-2025", "EMPTY-EMPTY-EMPTY-EMPTY-EMPTY",
)  # fmt: skip


@pytest.mark.parametrize("text", GUESSED)
def test_what_people_make_up_is_weak_however_long(text: str) -> None:
    assert is_weak(text)


def test_what_is_said_again_is_no_harder_to_guess_than_once() -> None:
    text = "kQ7vXm2pZr9T"
    for again in (text, text * 2, text[:4], text[-4:], "www"):
        assert guessing.bits(text + again) == pytest.approx(guessing.bits(text) + guessing.KNOWN), again
    assert guessing.bits(text + text[:4] + "Y") == pytest.approx(guessing.bits(text + "Y") + guessing.KNOWN)
    assert guessing.bits(text + text[:3]) > guessing.bits(text + text[:4]), "three letters meet by chance"


@pytest.mark.parametrize("row", ["123", "1234", "67890", "vwxyz", "edcb", "sdfgh"])
def test_a_row_of_keys_is_one_piece_however_long(row: str) -> None:
    assert guessing.bits("kQ7vXm2pZr9T" + row) == pytest.approx(guessing.bits("kQ7vXm2pZr9T") + guessing.KNOWN)


@pytest.mark.parametrize("prefix", ["sk-", "API_", "token-"])
def test_what_every_key_begins_with_is_not_counted_and_in_its_midst_it_is(prefix: str) -> None:
    assert guessing.bits(f"{prefix}kQ7vXm2pZr9T") == guessing.bits("kQ7vXm2pZr9T")
    assert guessing.bits(f"kQ7v{prefix}Xm2pZr9T") > guessing.bits("kQ7vXm2pZr9T")


def made(kind: str, chance: random.Random) -> str:
    """What openssl, uuidgen and password managers give."""
    letters = {"hex": "0123456789abcdef", "lower": string.ascii_lowercase, "any": string.ascii_letters + string.digits}
    lengths = {"hex": 32, "lower": 26, "any": 22}
    if kind == "uuid":
        return str(uuid.UUID(int=chance.getrandbits(128), version=4))
    return "".join(chance.choice(letters[kind]) for _ in range(lengths[kind]))


@pytest.mark.parametrize("kind", ["hex", "lower", "any", "uuid"])
def test_what_chance_made_is_not(kind: str) -> None:
    chance = random.Random(kind)
    weak = [key for key in (made(kind, chance) for _ in range(1000)) if is_weak(key)]
    assert weak == []


@pytest.mark.parametrize(
    "text", ["password", "password123456789012345678901234", "sk-1234567890123456", "EMPTY", "token-abc123",
             "Admin2024", "adminadminadmin", "12345678901234567890", "abcdefghijklmnopqrstuvwxyz"],
)  # fmt: skip
def test_the_digest_of_a_first_guess_is_recognised(text: str) -> None:
    assert is_first_guess(hashlib.sha256(text.encode()).hexdigest())


def test_no_other_digest_is() -> None:
    assert not any(is_first_guess(hashlib.sha256(bytes([number])).hexdigest()) for number in range(256))
