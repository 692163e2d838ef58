"""The pages: links lead somewhere, commands are real ones, tables are the code's, named tests exist."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from installer.base.language import CHINESE
from installer.cli import cli
from installer.spec.settings import NAMES
from scripts import modules, reference
from scripts.boards import BOARDS
from scripts.facts import ENVIRONMENT, EXIT_CODES, settings
from scripts.manpage import manpage
from scripts.panels import THEMES
from scripts.screens import SCREENS
from scripts.speed import LANGUAGES
from scripts.verbs import verbs
from tests.kit.boot.surroundings import REPO

PAGES = sorted([*REPO.glob("*.md"), *(REPO / "docs").rglob("*.md")])
READMES = (REPO / "README.md", REPO / "README.zh-CN.md")
TOURS = (REPO / "docs/tour.md", REPO / "docs/tour.zh-CN.md")
MADE = ("build", "dist")  # there or not
VERB = re.compile(r"^(?:sudo |# |\$ )*vllm-install (.+)$")


def names(pages: list[Path]) -> list[str]:
    return [str(page.relative_to(REPO)) for page in pages]


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```(?:sh|console)\n(.*?)^```$", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> list[str]:
    """Every command line of ours on a page, in a block of shell or between backquotes."""
    lines = [line.strip() for block in blocks(page) for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`((?:sudo )?vllm-install [^`]+)`", prose(page))
    return [found[1] for line in lines if (found := VERB.match(line))]


# Links


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_link_leads_to_something(page: Path) -> None:
    broken = []
    for target in re.findall(r"(?<!\\)\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(page))):
        if re.match(r"https?:|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        found = page.parent / path if path else page
        if not found.exists() or (anchor and anchor not in anchors(found)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_file_of_the_repository_that_a_page_names_is_there(page: Path) -> None:
    gone = []
    for path in re.findall(r"`([\w.-]+/[\w./*-]*)(?:::\w+)?`", prose(page)):
        first = path.split("/")[0]
        tops = [top for top in (REPO, REPO / "installer") if first not in MADE and (top / first).is_dir()]
        if tops and not any([*top.glob(path)] for top in tops):
            gone.append(path)
    assert gone == []


def test_the_index_names_every_page() -> None:
    index = (REPO / "docs/README.md").read_text()
    missing = [page.name for page in (REPO / "docs").glob("*.md") if f"({page.name})" not in index]
    assert missing == ["README.md"]


# Commands


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_command_on_a_page_is_one_that_there_is(page: Path) -> None:
    for line in commands(page):
        words = [word for word in shlex.split(line, comments=True) if word != "…"]
        words = words[: next((i for i, word in enumerate(words) if word in ("|", ">", "2>", "&&", ";")), len(words))]
        understood(words, line)


def understood(words: list[str], line: str) -> None:
    command: click.Command = cli
    context = click.Context(cli)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(context, words[0])
        assert found is not None or command.invoke_without_command, line
        if found is None:
            break
        command, words = found, words[1:]
        context = click.Context(command, parent=context)
    try:
        command.make_parser(context).parse_args(list(words))
    except click.UsageError as error:
        raise AssertionError(f"{line}: {error.format_message()}") from None


@pytest.mark.parametrize("pair", [READMES, TOURS], ids=["README", "tour"])
def test_both_languages_link_to_the_same_places(pair: tuple[Path, Path]) -> None:
    english, chinese = ([*re.findall(r"\]\(([^)]+)\)", page.read_text())] for page in pair)
    of_either = {re.sub(r"\.zh.CN\.", ".", target).replace("#退出码", "#exit-codes") for target in chinese}
    assert {*english} - {"README.zh-CN.md"} == of_either - {"README.md"}


def test_every_picture_is_on_a_page_and_in_both_languages() -> None:
    held = {path.name for path in (REPO / "docs/images").iterdir()}
    screens = {f"{screen.name}{suffix}.svg" for screen in SCREENS for suffix in ("", f".{CHINESE}")}
    dashboards = {f"dashboard-{name}{suffix}.svg" for name in BOARDS for suffix in THEMES}  # of Grafana, in no language
    speed = {f"{name}{suffix}.svg" for name in ("bench", "bench-h200") for suffix in LANGUAGES}
    assert held == screens | dashboards | speed
    for page, pictures in (("screens", screens), ("dashboards", dashboards), ("bench", speed)):
        assert pictures == set(re.findall(r"\bimages/([\w.-]+)", (REPO / f"docs/{page}.md").read_text()))


@pytest.mark.parametrize("pair", [READMES, TOURS], ids=["README", "tour"])
def test_both_languages_show_the_same_commands(pair: tuple[Path, Path]) -> None:
    english, chinese = ([shlex.split(line, comments=True) for line in commands(page)] for page in pair)
    assert english == chinese


def test_the_tour_shows_every_verb() -> None:
    shown = [" ".join(shlex.split(line, comments=True)) for page in (READMES[0], TOURS[0]) for line in commands(page)]
    for verb in verbs():
        assert any(line == verb.name or line.startswith(f"{verb.name} ") for line in shown), verb.name


# Tables


def test_the_reference_is_what_the_command_line_says() -> None:
    assert reference.PAGE.read_text() == reference.reference(), "run: make docs"


def test_the_list_of_modules_is_what_they_say() -> None:
    assert modules.PAGE.read_text() == modules.architecture(), "run: make docs"


def test_every_setting_and_every_variable_that_is_read_is_described() -> None:
    assert {name for setting in settings() for name in setting.names} == set(NAMES)
    described = {name for names in ENVIRONMENT for name in names.split(", ")} | set(NAMES)
    described |= {"HOME", "XDG_CONFIG_DIRS", "XDG_CONFIG_HOME", "SUDO_USER", "DOAS_USER"}  # set by others than users
    read = set()
    for path in (REPO / "installer").rglob("*.py"):
        if "runtime" not in path.parts:
            read |= set(re.findall(r'environ(?:\.get\(|\[)"([A-Z_]+)"[\])]', path.read_text()))
    assert read <= described


@pytest.mark.parametrize("page", TOURS, ids=names(list(TOURS)))
def test_a_tour_s_tables_are_the_code_s(page: Path) -> None:
    text = page.read_text().replace("、", ", ")
    assert re.findall(r"^\| (\d+) \|", text, re.MULTILINE) == [str(int(code)) for code in EXIT_CODES]
    rows = re.findall(r"^\| `(--[^|]*)` \| (?:`([^|]*)`)? \| (?:`([^|]*)`)? \|", text, re.MULTILINE)
    split = [tuple(cell.split("`, `") for cell in row) for row in rows if row[0] != "--service"]
    known = {setting.option: setting for setting in settings()}
    for options, found_names, defaults in split:
        there = [known[option] for option in options]
        assert [name for setting in there for name in setting.names if name in found_names] == found_names
        assert list(dict.fromkeys(setting.default for setting in there)) == defaults


# The man page


@pytest.mark.root  # for mandoc, which only the tests that need root install
def test_the_man_page_has_no_warnings(tmp_path: Path) -> None:
    page = tmp_path / "vllm-install.8"
    page.write_text(manpage())
    checked = subprocess.run(["mandoc", "-Tlint", page], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
    # A message of the lowest level would not fail, and a word of a message is all that a broken macro shows.
    shown = subprocess.run(["mandoc", "-Tutf8", page], capture_output=True, text=True, check=True).stdout
    plain = re.sub(r".\x08", "", shown)
    for verb in verbs():
        assert re.search(rf"^   {re.escape(verb.name)}$", plain, re.MULTILINE), verb.name
        for option in verb.options:
            assert option.names.split()[0] in plain
    assert set(NAMES) <= set(re.findall(r"[A-Z_]+", plain))


def test_no_text_of_the_man_page_is_taken_for_markup() -> None:
    from scripts.manpage import literal

    assert literal(".TH it's a \\fBtrap\\fP -x") == "\\&.TH it\\(aqs a \\efBtrap\\efP \\-x"


# Parity


def test_the_tests_that_show_parity_exist() -> None:
    page = (REPO / "docs/parity.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)
    missing = [f"{file}::{test}" for file, test in named if test not in functions_of(REPO / file)]
    assert missing == []
    numbers = [int(number) for number in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)]
    assert numbers == list(range(1, 35))


def functions_of(file: Path) -> set[str]:
    tree = ast.parse(file.read_text()) if file.exists() else ast.Module([], [])
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
