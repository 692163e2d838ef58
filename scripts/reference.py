"""docs/reference.md, made of the command line itself: `make docs` writes it anew, a test says when it is stale."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from scripts.facts import ENVIRONMENT, EXIT_CODES, FILES, settings
from scripts.verbs import Verb, verbs

PAGE = Path(__file__).resolve().parent.parent / "docs/reference.md"
HEAD = """\
# Reference

Every verb with its options, every setting, environment variable, exit code and file. Generated from the command line
(`make docs`); the same is in `man vllm-install`. Every verb and every group takes `-h`; `vllm-install --version` says
which one this is.
"""
SETTINGS = """
## Settings

In `/etc/vllm-install/NAME.env`, one `NAME=VALUE` a line, or in the environment, or as an option; the last one wins:
defaults, file, environment, options. Where two names stand, both mean the same. `vllm-install set` takes any of them.
"""


def reference() -> str:
    lines = [HEAD, "## Verbs", ""]
    lines += [f"- [`{verb.name}`](#{anchor(verb.name)}): {first_sentence(verb)}" for verb in verbs()]
    for verb in verbs():
        lines += ["", *_verb(verb)]
    lines.append(SETTINGS)
    lines += table(("setting", "option", "default", ""), _setting_rows())
    lines += ["", "## Environment", "", "Besides the settings:", ""]
    lines += table(("variable", ""), ((code(names), help) for names, help in ENVIRONMENT.items()))
    lines += ["", "## Exit codes", ""]
    lines += table(("code", ""), ((str(int(number)), text) for number, text in EXIT_CODES.items()))
    lines += ["", "## Files", ""]
    lines += table(("path", ""), ((f"`{path}`", text) for path, text in FILES.items()))
    return "\n".join(lines) + "\n"


def _verb(verb: Verb) -> Iterator[str]:
    yield from (f"### {verb.name}", "", "```", verb.usage, "```")
    for paragraph in verb.paragraphs:
        yield from ("", escape(paragraph))
    yield from ("", "```", *verb.examples, "```")
    if verb.options:
        yield ""
        yield from table(("option", ""), ((f"`{option.names}`", option.help) for option in verb.options))


def _setting_rows() -> Iterator[tuple[str, ...]]:
    for setting in settings():
        default = code(setting.default) if setting.default else ""
        yield code(", ".join(setting.names)), code(setting.option), default, setting.help


def first_sentence(verb: Verb) -> str:
    return escape(verb.paragraphs[0].removesuffix("."))


def anchor(name: str) -> str:
    return name.replace(" ", "-")


def code(names: str) -> str:
    return ", ".join(f"`{name}`" for name in names.split(", "))


def escape(text: str) -> str:
    return re.sub(r"([*\[\]])", r"\\\1", text.replace("<", "&lt;"))


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield _row(titles)
    yield "|" + "---|" * len(titles)
    for row in rows:
        yield _row(row)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    PAGE.write_text(reference())
