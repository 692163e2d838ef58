"""How hard a key is to guess back from its public digest: by what people know who try it, not by its length."""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections.abc import Iterator

# A thousand graphics cards that try ten billion digests a second need ten years for them.
ENOUGH = 72.0  # bits
KNOWN = 6.0  # bits of a piece that is one of few: a row of keys, a piece that was there before
LETTER = 2.0  # bits of each letter of a word or a name, whatever its language: spelling has few ways to go on
SHORTEST_WORD, SHORTEST_ROW, SHORTEST_ECHO = 4, 3, 4
FLUENT = 0.65  # so many of a word's pairs of letters are common ones; of random letters a quarter

# After each letter, those that follow it most: four of five pairs in what people type, in English or in pinyin.
_FOLLOWERS = {
    "a": "bcdgilmnoprsty", "b": "aeiloru", "c": "aehiklortu", "d": "aeio", "e": "acdeilmnprstvx", "f": "eiou",
    "g": "aeghiru", "h": "aeiou", "i": "acdeglmnoprstv", "j": "iu", "k": "ei", "l": "aeilmouy", "m": "aeiop",
    "n": "acdegiost", "o": "cdlmnoprstuvw", "p": "aeilopr", "q": "iu", "r": "adeimorstuy", "s": "acehiopstu",
    "t": "aehiorstuy", "u": "aclmnorst", "v": "aeil", "w": "aeo", "x": "iu", "y": "aiou", "z": "ahiu",
}  # fmt: skip
_ROWS = ("1234567890", "abcdefghijklmnopqrstuvwxyz", "qwertyuiop", "asdfghjkl", "zxcvbnm", "qazwsxedcrfvtgbyhnujmikolp")
_LEET = str.maketrans("01345@$7!", "oleasasti")
_PREFIX = re.compile(r"^(?:sk|pk|api|key|token)[-_]", re.IGNORECASE)
# What manuals write where a key belongs, and what people choose first.
_FIRST = """
abc123 admin apikey api-key changeme default demo dummy EMPTY fake-key foo guest hello internal key letmein
llama lm-studio local login master monkey mysecret mykey no-key no-key-required none not-needed null ollama
openai passw0rd password pass private qwen qwen3 qwen3vl qwerty root secret server service sunshine superuser
supersecret test testkey testing token token-abc123 user vllm vllm-key vllm-secret welcome xxx your-api-key
your_api_key
"""


def is_weak(plain: str) -> bool:
    return bits(plain) < ENOUGH


def bits(plain: str) -> float:
    """What is left to guess once words, rows of keys and repetitions are known for what they are."""
    text = _PREFIX.sub("", plain)
    plain_lower = text.lower()
    words = set(_words(text))
    each = math.log2(max(2, _alphabet(text)))
    total, at = 0.0, 0
    while at < len(text):
        length = max(_echo(plain_lower, at), _row(plain_lower, at), _year(text, at))
        if length:
            total, at = total + min(KNOWN, each * length), at + length
        elif at in words:
            total, at = total + min(LETTER, each), at + 1
        else:
            total, at = total + (each if text[at].isalnum() else LETTER), at + 1
    return total


def _alphabet(text: str) -> int:
    """From how many characters each was chosen."""
    if re.fullmatch(r"[0-9a-f-]+|[0-9A-F-]+", text):
        return 10 if re.fullmatch(r"[0-9-]+", text) else 16
    classes = (("[a-z]", 26), ("[A-Z]", 26), ("[0-9]", 10), ("[^A-Za-z0-9]", 2))
    return sum(size for pattern, size in classes if re.search(pattern, text))


def _words(text: str) -> Iterator[int]:
    """Every place within what reads like words, figures in the place of letters (p4ssw0rd) among them."""
    spelt = text.lower().translate(_LEET)
    for run in re.finditer(r"[a-z]+", spelt):
        letters, typed = run[0], text[run.start() : run.end()]
        alone = not text[: run.start()][-1:].isalnum() and not text[run.end() :][:1].isalnum()
        if (alone and len(letters) < SHORTEST_WORD) or (len(letters) >= SHORTEST_WORD and _is_word(letters, typed)):
            yield from range(run.start(), run.end())


def _is_word(letters: str, typed: str) -> bool:
    """Words are in one case, or begin with a capital each; letters by chance change between the two at any place."""
    own = sum(character.isalpha() for character in typed)
    capitals = len(re.findall(r"[A-Z]", typed))
    in_case = typed.upper() == typed or (3 * capitals <= own and not re.search(r"[A-Z]{2}", typed))
    pairs = [following in _FOLLOWERS.get(letter, "") for letter, following in zip(letters, letters[1:], strict=False)]
    return in_case and own >= 0.7 * len(letters) and sum(pairs) >= FLUENT * len(pairs)


def _echo(text: str, at: int) -> int:
    """How much of what follows was there before, or is one character again and again."""
    same = len(text[at:]) - len(text[at:].lstrip(text[at]))
    length = SHORTEST_ECHO
    while at + length <= len(text) and text.find(text[at : at + length], 0, at + length - 1) >= 0:
        length += 1
    echo = length - 1 if length > SHORTEST_ECHO else 0
    return max(echo, same if same >= SHORTEST_ROW else 0)


def _row(text: str, at: int) -> int:
    """How many keys in a row are pressed from here on: 123…, abc…, qwerty, or any of them backwards."""
    best = 0
    for row in _ROWS:
        for way in (row * 8, row[::-1] * 8):
            length = SHORTEST_ROW
            while at + length <= len(text) and text[at : at + length] in way:
                best, length = max(best, length), length + 1
    return best


def _year(text: str, at: int) -> int:
    return 4 if re.match(r"(?:19|20)\d\d(?!\d)", text[at:]) and not text[:at][-1:].isdigit() else 0


def is_first_guess(digest: str) -> bool:
    """Whether a digest is that of a key that everybody would try first; of another, a digest tells nothing."""
    return digest in _first_digests()


@functools.cache
def _first_digests() -> frozenset[str]:
    tails = [(_ROWS[0] * 4)[:length] for length in range(33)]
    tails += [f"{mark}{year}" for year in range(2018, 2028) for mark in ("", "-", "@")]
    tails += [tail + "!" for tail in ("", "1", "123", "1234")]
    spelt = {spelling for word in _FIRST.split() for spelling in (word, word.capitalize(), word.upper())}
    guesses = (head + word + tail for head in ("", "sk-") for word in spelt for tail in tails)
    again = (word * count for word in spelt for count in range(2, 9))
    rows = [row * 8 for row in _ROWS[:5]]
    cut = (head + row[:length] for head in ("", "sk-") for row in rows for length in range(4, 65))
    return frozenset(hashlib.sha256(text.encode()).hexdigest() for group in (guesses, again, cut) for text in group)
