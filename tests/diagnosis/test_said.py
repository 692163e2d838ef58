"""Whatever launcher and watcher say can be shown in another language, and is shown in English as they said it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from installer.base.assets import RUNTIME
from installer.diagnosis import said
from installer.runtime.vllm_flags import NO_TLS
from installer.runtime.vllm_words import FAMILIES

sys.path.append(str(RUNTIME))
SPEAKING = {"end", "end_hung", "notify", "Refused"}
OURS = "STATUS="


def spoken(path: Path) -> Iterator[str]:
    """Every text that reaches systemd's status, with a word in place of each value."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in SPEAKING:
            for text in map(as_text, node.args):
                if text.startswith(OURS) or (" " in text and "=1" not in text):
                    yield text.removeprefix(OURS)


def as_text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "serve" for part in node.values)
    return ""


SPOKEN = [text for path in sorted(RUNTIME.glob("vllm_*.py")) for text in spoken(path)]
OF_FAMILIES = [
    text
    for of in FAMILIES.values()
    for text in (*(stage for _, stage in of.stages), *of.refused.values(), *of.variables.values())
]
WHOLE = [text for text in (*SPOKEN, *OF_FAMILIES, NO_TLS) if text != "serve"]


def test_there_is_something_to_translate() -> None:
    assert len(WHOLE) > 30


@pytest.mark.parametrize("text", sorted(set(WHOLE)))
def test_it_is_in_the_table(text: str) -> None:
    text = text.replace("cannot serve", "cannot launch")
    assert any(form.fullmatch(text) for _, form in said._forms())


def test_what_is_in_a_text_is_translated_too(monkeypatch: pytest.MonkeyPatch) -> None:
    words = {"refused: {why}": "R({why})", "--port {port} is not a port": "P({port})", "loading weights": "L"}
    monkeypatch.setattr(said, "tr", lambda text, /, **values: words.get(text, text).format(**values))
    assert said.translated("refused: --port 7 is not a port") == "R(P(7))"
    assert said.translated("failed while loading weights: {x}") == "failed while L: {x}"


@pytest.mark.parametrize(
    "text",
    [
        "the start made no progress for 300 s; stage: loading weights; no metrics",
        "failed while loading weights: ValueError: {'a': 1}",
        "serving org/model {x}",
        "undone: the service failed; stage: x",
        "nothing of ours: a\nb",
        "",
    ],
)
def test_in_english_nothing_changes(text: str) -> None:
    assert said.translated(text) == text
