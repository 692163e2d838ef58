"""What an attacker writes, and what may become of it."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from hypothesis import strategies as st

from installer.base.errors import Exit, InstallError, explain
from installer.base.report import Screen
from installer.runtime.vllm_text import KEPT

FORGED = "forged"  # what stands at the beginning of a line that others would like to see in our output
PIECES = (
    "\x1b[2J",
    "\x1b]0;x\x07",
    "\x9b31m",
    "\0",
    "\r",
    f"\n{FORGED}",
    f"\n<2>{FORGED}",
    "\u202e",
    "\u2028",
    "\ud800",
    "../",
    "/",
    "$(id)",
    "`id`",
    "%n",
    "${X}",
    "{x}",
    "{",
    "'",
    '"',
    "\\",
    "--api-key",
    "²",
    "٣",
    "ſ",
    "İ",
    "９",
    "-" * 300,
    "9" * 5000,
    "a" * 300,
    "🙂",
)
TEXT = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=5)), max_size=6).map("".join)
ODD = st.one_of(
    st.sampled_from((None, True, False, 0, -1, 5, 10**30, 1e400, float("nan"), "", "2", [], {}, [[]], {"": None})),
    st.integers(),
    st.floats(),
    TEXT,
)
JSON = st.recursive(
    ODD, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)
NESTED = st.sampled_from((b"[" * 200_000, b'{"a":' * 200_000, b'{"sha": ' + b"[" * 200_000))


def places(value: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """Where in a document something can be put in another's stead."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for name, each in entries for found in places(each, (*path, name)))]


def planted(document: object, path: tuple[object, ...], value: object) -> Any:
    """The document, with something else in one place."""
    if not path:
        return value
    copied: Any = json.loads(json.dumps(document))
    inner = copied
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return copied


def tampered(document: object) -> st.SearchStrategy[Any]:
    """The document with one to three of its parts replaced, or something that is no such document at all."""
    change = st.tuples(st.sampled_from(places(document)), ODD | JSON)

    def apply(changes: list[tuple[tuple[object, ...], object]]) -> Any:
        result = document
        for path, value in changes:
            try:
                result = planted(result, path, value)
            except (KeyError, IndexError, TypeError, ValueError):
                continue  # an earlier change took that place away
        return result

    return st.lists(change, min_size=1, max_size=3).map(apply)


def as_bytes(document: object) -> bytes:
    return json.dumps(document).encode()


def shown(text: str) -> str:
    """The text as it stands on a terminal."""
    read, write = os.pipe()
    with os.fdopen(read, "rb") as out, io.TextIOWrapper(os.fdopen(write, "wb"), "utf-8") as under:
        screen = Screen(under)
        screen.write(text[:20_000])
        screen.flush()
        screen.detach()
        under.close()
        return out.read().decode()


def outcome(task: Callable[[], object], allowed: tuple[type[Exception], ...] = ()) -> object:
    """What a task gives, or the documented error that it ends with, which says nothing in our name."""
    try:
        return task()
    except allowed as error:
        return is_ours(str(error))
    except Exception as error:
        known = explain(error)
        if known is None:
            raise
        assert known.exit_code != Exit.BUG or type(known) is not InstallError, known.message
        is_ours(known.message)
        is_ours(known.hint)
        return known


def is_ours(text: str) -> None:
    said = shown(text)
    assert all(c.isprintable() or c in KEPT for c in said), ascii(said)
    assert not re.search(rf"^(<\d>)?{FORGED}", said, re.MULTILINE), ascii(said)


def all_ours(texts: Mapping[str, object]) -> None:
    for text in texts.values():
        is_ours(str(text))
