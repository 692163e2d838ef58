"""What people read, in two languages: the catalogue is whole, the choice is right, and columns stay columns."""

from __future__ import annotations

import ast
import gettext
import os
import re
import string
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from installer.base.assets import PACKAGE
from installer.base.cells import pad, width, wrap
from installer.base.language import CHINESE, ENGLISH, choose
from scripts import catalogue

CATALOGUE = catalogue.read(CHINESE)
# Where a text that is given goes to people as it is.
SPEAKING = {"InstallError", "UsageError", "Refused", "ModelError", "Problem", "echo", "note", "warn"}
PLAIN_COMMANDS = ("sudo ", "vllm-install ", "systemctl ", "systemd-analyze ", "journalctl ", "mkdir ", "ssh ")


def in_language(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = [sys.executable, "-m", "installer", *words]
    return subprocess.run(command, cwd=PACKAGE.parent, env={**kept, **environment}, capture_output=True, text=True)


def test_every_text_is_translated_and_no_translation_is_left_over() -> None:
    # Which texts click has depends on its version, which is no fault of the catalogue.
    asked = {text for text, places in catalogue.texts().items() if not all(map(is_clicks, places))}
    held = {message.id for message in CATALOGUE if message.id and not all(is_clicks(at) for at, _ in message.locations)}
    assert not asked ^ held, "run: make catalogue"
    assert not [message.id for message in CATALOGUE if message.id and not message.string]
    assert not [message.id for message in CATALOGUE if message.fuzzy]


def is_clicks(place: str) -> bool:
    return place.startswith("click/")


def test_a_translation_has_the_values_of_its_text() -> None:
    for message in CATALOGUE:
        assert placeholders(str(message.string)) == placeholders(str(message.id)), message.id


def placeholders(text: str) -> list[tuple[str | None, ...]] | str:
    """Names with format and conversion, each as often as it is there; not for a text that is no template."""
    try:
        found = [field[1:] for field in string.Formatter().parse(text) if field[1] is not None]
    except ValueError:
        return ""
    return sorted(found, key=str)


def test_a_text_is_given_the_values_that_it_names() -> None:
    """A name without its value would be a traceback where it is said; a value without its name is lost."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or getattr(node.func, "id", "") != "tr" or not node.keywords:
                continue
            text, given = node.args[0], {keyword.arg for keyword in node.keywords}
            if isinstance(text, ast.Constant) and None not in given:
                named = {name for _, name, _, _ in string.Formatter().parse(str(text.value)) if name is not None}
                assert named == given, f"{path.relative_to(PACKAGE)}:{node.lineno}"


def test_what_is_read_at_run_time_is_compiled_from_what_translators_write() -> None:
    path = catalogue.po_file(CHINESE).with_suffix(".mo")
    with path.open("rb") as file:
        compiled = gettext.GNUTranslations(file)
    for message in CATALOGUE:
        text = str(message.id)
        assert not text or message.string in (compiled.gettext(text), compiled.ngettext(text, text, 1))


def test_whatever_is_said_can_be_translated() -> None:
    said = [found for path in sorted(PACKAGE.rglob("*.py")) for found in untranslated(path)]
    assert not said


def untranslated(path: Path) -> Iterator[str]:
    """Sentences that go straight into something that speaks to people."""
    if PACKAGE / "runtime" in path.parents:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        for argument in node.args if name in SPEAKING else []:
            text = sentence(argument)
            if " " in text.strip() and not text.startswith(PLAIN_COMMANDS):
                yield f"{path.relative_to(PACKAGE)}:{argument.lineno}: {text}"


def sentence(node: ast.expr) -> str:
    """The text of a literal; of one with values in it, the words between them."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        words = "".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
        return words if any(map(str.isalpha, words)) else ""
    return ""


@pytest.mark.parametrize(
    ("words", "environment", "language"),
    [
        ((), {}, ENGLISH),
        ((), {"LANG": "zh_CN.UTF-8"}, CHINESE),
        ((), {"LANG": "zh_SG.UTF-8"}, CHINESE),
        ((), {"LANG": "zh_TW.UTF-8"}, ENGLISH),
        ((), {"LANG": "de_DE.UTF-8"}, ENGLISH),
        ((), {"LANG": "zh_CN.UTF-8", "LC_ALL": "C"}, ENGLISH),
        ((), {"LANG": "en_GB.UTF-8", "LC_MESSAGES": "zh_CN"}, CHINESE),
        ((), {"LANG": "en_GB.UTF-8", "LANGUAGE": "zh_CN:en"}, CHINESE),
        ((), {"LANG": "zh_CN.UTF-8", "LANGUAGE": "en:zh_CN"}, ENGLISH),
        ((), {"LC_ALL": "C", "LANGUAGE": "zh_CN"}, ENGLISH),
        (("--lang", "zh_CN", "status"), {"LANG": "en_US.UTF-8"}, CHINESE),
        (("--lang=zh_CN", "status"), {"LC_ALL": "C"}, CHINESE),
        (("--lang", "en", "status"), {"LANG": "zh_CN.UTF-8"}, ENGLISH),
        (("logs", "--lang", "zh_CN"), {}, ENGLISH),
        (("--lang",), {}, ENGLISH),
    ],
)
def test_the_language(words: tuple[str, ...], environment: dict[str, str], language: str) -> None:
    assert choose(["vllm-install", *words], environment) == language


def test_help_is_chinese_and_fits() -> None:
    for words in ((), ("deploy",), ("set-apikey",), ("models", "pull"), ("logs",)):
        done = in_language("--lang", CHINESE, *words, "--help", COLUMNS="72", LC_ALL="C.UTF-8")
        assert done.returncode == 0
        assert "用法" in done.stdout
        assert "Show " not in done.stdout
        assert max(map(width, done.stdout.splitlines())) <= 72


def test_an_error_is_chinese_and_its_json_keeps_its_names() -> None:
    done = in_language("set", "PORT=99999", LANG="zh_CN.UTF-8")
    assert done.returncode == 2
    assert done.stderr.startswith("错误：")
    assert "PORT='99999'" in done.stderr or "99999" in done.stderr
    done = in_language("set", "--json", "PORT=99999", LANG="zh_CN.UTF-8")
    assert '"exit_code": 2' in done.stdout


def test_click_speaks_chinese_of_one_and_of_several_things() -> None:
    for words in (("list", "one"), ("list", "one", "two"), ("deploy", "--port"), ("completion", "tcsh"), ("lits",)):
        done = in_language(*words, LANG="zh_CN.UTF-8")
        assert done.returncode == 2
        said = done.stderr.splitlines()[-1].replace("bash", "").replace("fish", "")
        assert said.startswith("错误：")
        assert not re.search(r"\b[A-Z]?[a-z]+ [a-z]+ [a-z]+\b", said)


def test_sentences_of_click_are_put_together_as_chinese_has_it() -> None:
    for words in (("set-context",), ("client-config",), ("deploy", "--disk")):
        said = in_language(*words, LANG="zh_CN.UTF-8").stderr
        assert "'。" in said
        assert not re.search(r"'\.( |$)|。 ", said, re.MULTILINE)
    assert in_language("set-context").stderr.endswith("Missing argument '1024|32k|256K|auto'.\n")


def test_a_text_knows_the_english_that_goes_into_a_record() -> None:
    script = """
from installer.base.errors import CommandFailed, undone
from installer.base.language import english, tr
record = []
undone(CommandFailed(("uv", "pip"), 2, "no room"), lambda why: record.append(why) or "")
print(record[0]); print(english(record[0])); print(english(tr("{what}: {why}", what=tr("the unit"), why="x")))
"""
    kept = {"PATH": os.environ["PATH"], "LANG": "zh_CN.UTF-8"}
    shown, recorded, within = subprocess.run(
        [sys.executable, "-c", script], cwd=PACKAGE.parent, env=kept, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert "失败" in shown
    assert recorded == "uv failed with exit status 2:"
    assert within == "the unit: x"


def test_a_language_that_there_is_none_of_is_an_error_of_use() -> None:
    done = in_language("--lang", "tlh", "status")
    assert done.returncode == 2
    assert "tlh" in done.stderr


WIDE = st.text(st.sampled_from("ab ，。模型（）é\u0301 \n"), max_size=60)


@given(WIDE, st.integers(4, 40))
def test_lines_are_no_wider_than_asked_and_nothing_is_lost(text: str, columns: int) -> None:
    lines = wrap(text, columns)
    assert "".join("".join(lines).split()) == "".join(text.split())
    for line in lines:
        assert width(line) <= columns or " " not in line


@given(WIDE.filter(lambda text: "\n" not in text), st.integers(1, 80))
def test_a_column_is_as_wide_as_asked(text: str, columns: int) -> None:
    assert width(pad(text, columns)) == width(pad(text, -columns)) == max(columns, width(text))


def test_brackets_stay_with_what_they_hold() -> None:
    assert wrap("模型 [默认：值]", 6) == ["模型", "[默", "认：", "值]"]
    assert wrap("模型（值）", 6) == ["模型", "（值）"]
    assert wrap("one(two) (three)", 9) == ["one(two)", "(three)"]
    assert wrap("“模型”和《值》", 6) == ["“模型”", "和", "《值》"]


def test_english_is_broken_as_ever() -> None:
    assert wrap("one two  three", 8) == ["one two", "three"]
    assert wrap("a word-that-is-long b", 6) == ["a", "word-that-is-long", "b"]
    assert wrap("", 10) == []
