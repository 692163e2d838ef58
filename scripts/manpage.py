"""vllm-install(8), made of the command line itself whenever the package is built."""

from __future__ import annotations

import os
import re
import textwrap
import time
from collections.abc import Iterable, Iterator

from installer import __version__
from scripts.facts import ENVIRONMENT, EXIT_CODES, FILES, settings
from scripts.verbs import Verb, verbs

NAME = "vllm-install.8"
ABOUT = "install, prove and run vLLM as a hardened systemd service"


def manpage() -> str:
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield f'.TH VLLM-INSTALL 8 "{_date()}" "vllm-install {__version__}"'
    yield from (".SH NAME", f"vllm-install \\- {ABOUT}")
    yield ".SH SYNOPSIS"
    for number, verb in enumerate(verbs()):
        yield from ([] if number == 0 else [".br"])
        yield _usage(verb)
    yield from (".SH DESCRIPTION", *_text(DESCRIPTION))
    yield ".SH VERBS"
    for verb in verbs():
        yield from _verb(verb)
    yield from (".SH SETTINGS", *_text(SETTINGS))
    yield from _list(
        (", ".join(s.names), f"{s.help} Option: {s.option}. Default: {s.default or 'none'}.") for s in settings()
    )
    yield from (".SH ENVIRONMENT", *_text("All settings, and besides them:"), *_list(ENVIRONMENT.items()))
    yield from (".SH FILES", *_list(FILES.items()))
    yield from (".SH EXIT STATUS", *_list((str(int(number)), text) for number, text in EXIT_CODES.items()))
    yield from (".SH SEE ALSO", ".BR systemctl (1),", ".BR journalctl (1),", ".BR systemd.service (5)")


DESCRIPTION = """\
sudo vllm-install deploy turns a Linux host into a vLLM service: an immutable engine, verified weights, a hardened
systemd unit, an API key, and proof that it serves. Every later change is proved or undone. Interrupted at any moment,
the same command run again completes the work. Every verb takes -h."""

SETTINGS = """\
In /etc/vllm-install/NAME.env, one NAME=VALUE a line, or in the environment, or as an option of deploy; the last one
wins: defaults, file, environment, options. Where two names stand, both mean the same."""


def _date() -> str:
    """Of the build; packagers who want equal bytes from equal sources set the variable that they all set."""
    return time.strftime("%Y-%m-%d", time.gmtime(float(os.environ.get("SOURCE_DATE_EPOCH") or time.time())))


def _usage(verb: Verb) -> str:
    rest = verb.usage.removeprefix(f"vllm-install {verb.name}")
    return f"\\fBvllm\\-install {literal(verb.name)}\\fP{literal(rest)}"


def _verb(verb: Verb) -> Iterator[str]:
    yield f'.SS "{literal(verb.name)}"'
    for number, paragraph in enumerate(verb.paragraphs):
        yield from ([] if number == 0 else [".PP"])
        yield from _text(paragraph)
    yield from (".PP", ".EX", *map(literal, verb.examples), ".EE")
    yield from _list((option.names, option.help) for option in verb.options)


def _list(items: Iterable[tuple[str, str]]) -> Iterator[str]:
    for name, text in items:
        yield from (".TP", f"\\fB{literal(name)}\\fP", *(_text(text) if text else ["\\&"]))


def _text(text: str) -> Iterator[str]:
    """A sentence a line, so that the formatter sets the space between them."""
    for sentence in re.split(r"(?<=[.:;]) ", " ".join(text.split())):
        yield from map(literal, textwrap.wrap(sentence, 76, break_long_words=False, break_on_hyphens=False))


def literal(text: str) -> str:
    """Literal text: no character of it is markup, and a hyphen can be pasted as one."""
    plain = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("…", "...")
    return f"\\&{plain}" if plain.startswith((".", "'")) else plain


if __name__ == "__main__":
    print(manpage(), end="")
