"""The catalogues of installer/locale, brought up to date with the source: `make catalogue`.

Every text that the source marks is in them, with the translation it had; whoever translates fills in the empty ones in
the .po file and runs this again, which also compiles it. A test says what is missing, stale or wrong.
"""

from __future__ import annotations

import ast
import copy
import importlib.resources
import inspect
import io
import json
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import click
from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

from installer.base.assets import DATA, PACKAGE
from installer.base.language import DOMAIN, ENGLISH, FOLDER, LANGUAGES
from installer.cli import cli

OURS = ("tr", "mark")
CLICKS = ("_", "ngettext")
EPOCH = datetime.fromtimestamp(0, timezone.utc)  # the same texts make the same files
# Lines of the head that would name people and places, or the day.
NOBODYS = (b'"Project', b'"Report', b'"POT', b'"PO-', b'"Last', b'"Language-Team', b'"Generated')
HEAD = "# What vllm-install says, in another language. `make catalogue` brings this up to date.\n#"


def texts() -> dict[str, set[str]]:
    """Every text there is to translate, and the files it is from."""
    found: dict[str, set[str]] = {}
    for text, place in (*_of_source(PACKAGE, OURS), *_of_help(cli), *_of_signatures(), *_of_gpu_faults(), *_of_click()):
        found.setdefault(text, set()).add(place)
    return found


def _of_source(folder: Path, functions: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.rglob("*.py")):
        place = f"{folder.name}/{path.relative_to(folder)}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in functions:
                first = node.args[0]
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    yield first.value, place
                elif node.func.id == "mark":
                    raise SystemExit(f"{place}:{node.lineno}: mark() takes a text that stands there")


def _of_help(command: click.Command) -> Iterator[tuple[str, str]]:
    place = "--help"
    if command.help:
        yield inspect.cleandoc(command.help), place
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.help and not parameter.hidden:
            yield parameter.help, place
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        yield from _of_help(below)


def _of_signatures() -> Iterator[tuple[str, str]]:
    table = DATA / "signatures.json"
    for entry in json.loads(table.read_text(encoding="utf-8")):
        yield entry["cause"], f"installer/data/{table.name}"


def _of_gpu_faults() -> Iterator[tuple[str, str]]:
    path = DATA / "gpu_faults.json"
    table = json.loads(path.read_text(encoding="utf-8"))
    for text in (
        *(each["means"] for each in table["decisions"].values()),
        *(each["cause"] for each in table["faults"]),
    ):
        yield text, f"installer/data/{path.name}"


def _of_click() -> Iterator[tuple[str, str]]:
    yield from _of_source(_click_folder(), CLICKS)


def _click_folder() -> Path:
    folder = importlib.resources.files(click)
    assert isinstance(folder, Path)
    return folder


def _plurals() -> dict[str, str]:
    """What click says of one thing -> of several: translators write one sentence that fits both."""
    calls = [node for path in _click_folder().rglob("*.py") for node in ast.walk(ast.parse(path.read_text("utf-8")))]
    return {
        ast.literal_eval(node.args[0]): ast.literal_eval(node.args[1])
        for node in calls
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "ngettext"
    }


def updated(language: str) -> Catalog:
    """The catalogue of a language with exactly today's texts, translated as far as they were before."""
    before = read(language)
    after = Catalog(
        language, DOMAIN, header_comment=HEAD, fuzzy=False,
        creation_date=EPOCH, revision_date=EPOCH,
    )  # fmt: skip
    for text, places in sorted(texts().items()):
        known = before.get(text)
        after.add(text, known.string if known else "", locations=[(place, 0) for place in sorted(places)])
    return after


def read(language: str) -> Catalog:
    path = po_file(language)
    return read_po(io.BytesIO(path.read_bytes()), language, DOMAIN) if path.exists() else Catalog(language, DOMAIN)


def po_file(language: str) -> Path:
    return FOLDER / language / "LC_MESSAGES" / f"{DOMAIN}.po"


def as_po(catalogue: Catalog) -> bytes:
    out = io.BytesIO()
    write_po(out, catalogue, width=120, sort_output=True, include_lineno=False)
    return b"".join(line for line in out.getvalue().splitlines(keepends=True) if not line.startswith(NOBODYS))


def as_mo(catalogue: Catalog) -> bytes:
    compiled, plurals = copy.deepcopy(catalogue), _plurals()
    for message in catalogue:
        if message.id in plurals and message.string:  # gettext finds these by both their forms alone
            compiled.add((str(message.id), plurals[str(message.id)]), (str(message.string),))
    out = io.BytesIO()
    write_mo(out, compiled)
    return out.getvalue()


def main() -> None:
    for language in LANGUAGES:
        if language == ENGLISH:
            continue
        catalogue = updated(language)
        path = po_file(language)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(as_po(catalogue))
        path.with_suffix(".mo").write_bytes(as_mo(catalogue))
        missing = [message.id for message in catalogue if message.id and not message.string]
        print(f"{language}: {len(catalogue)} texts, {len(missing)} without a translation", file=sys.stderr)


if __name__ == "__main__":
    main()
