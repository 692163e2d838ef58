"""What people read, in their language: the source is English, the catalogues with the others lie in locale/.

A text is written `tr("the port {port} is taken", port=port)`. The language is that of --lang, else of the environment,
and the same for as long as the process lives. What programs read (names in JSON, exit codes) and what is written to the
host (settings, units, the journal) stays English.
"""

from __future__ import annotations

import functools
import gettext
import os
import sys
from collections.abc import Iterator, Mapping, Sequence

from installer.base.assets import PACKAGE
from installer.runtime.vllm_text import without_password

DOMAIN = "vllm-install"
FOLDER = PACKAGE / "locale"
ENGLISH, CHINESE = LANGUAGES = ("en", "zh_CN")
OPTION = "--lang"
TRADITIONAL = ("zh_TW", "zh_HK", "zh_MO", "zh_Hant")


class Said(str):
    """A text in the user's language that knows its English, which is what a record on the host holds."""

    english: str


def tr(text: str, /, **values: object) -> str:
    """The text in the user's language, with its {names} filled in."""
    translated = _catalogue().gettext(text) if text else text
    if translated == text:
        return text.format(**values) if values else text
    plain = {name: english(value) if isinstance(value, str) else value for name, value in values.items()}
    return _said(translated.format(**values), text.format(**plain)) if values else _said(translated, text)


def english(text: str) -> str:
    """What `tr` was given, as far as the text is one of its; for what is written to the host."""
    return text.english if isinstance(text, Said) else text


def first_line(text: str) -> str:
    return _said(text.splitlines()[0], english(text).splitlines()[0])


def masked(text: str) -> str:
    """Without the password of a URL, in either language."""
    return _said(without_password(text), without_password(english(text)))


def _said(translated: str, plain: str) -> Said:
    said = Said(translated)
    said.english = plain
    return said


def mark(text: str) -> str:
    """The text as it is: it is translated where it is shown, because a program may read it as well."""
    return text


def choose(argv: Sequence[str], environment: Mapping[str, str]) -> str:
    """One of LANGUAGES."""
    return next(filter(None, map(_known, _asked(argv, environment))), ENGLISH)


def speak_everywhere() -> None:
    """Let click, whose texts are in our catalogue too, speak the language that was chosen."""
    os.environ["LANGUAGE"] = choose(sys.argv, os.environ)
    gettext.bindtextdomain(DOMAIN, str(FOLDER))
    gettext.textdomain(DOMAIN)


def _asked(argv: Sequence[str], environment: Mapping[str, str]) -> Iterator[str]:
    """Names of languages and locales, the most wanted first."""
    words = [*argv[1:], ""]
    for word, after in zip(words, words[1:], strict=False):
        name, equals, value = word.partition("=")
        if name == OPTION:
            yield value if equals else after
        if not word.startswith("-") and word not in LANGUAGES:
            break  # the verb: what follows are its own options
    locale = next(filter(None, map(environment.get, ("LC_ALL", "LC_MESSAGES", "LANG"))), "C")
    if locale not in ("C", "POSIX"):
        yield from environment.get("LANGUAGE", "").split(":")
    yield locale


def _known(name: str) -> str | None:
    plain = name.partition(".")[0].partition("@")[0]
    if plain.startswith(TRADITIONAL):
        return None
    return next((language for language in LANGUAGES if plain[:2] == language[:2]), None)


@functools.cache
def _catalogue() -> gettext.NullTranslations:
    return gettext.translation(DOMAIN, FOLDER, [choose(sys.argv, os.environ)], fallback=True)
