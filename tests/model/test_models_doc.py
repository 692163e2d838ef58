"""docs/models.md: its tables are the data's. `make golden` writes them anew."""

from __future__ import annotations

import os
import re

import pytest

from installer.families.vllm import abilities
from installer.model import formats, profiles
from installer.model.model_about import About
from installer.model.profiles import Family, ParserChoice
from tests.kit.boot.surroundings import REPO

PAGE = REPO / "docs/models.md"
QUANTIZATIONS = ("fp8", "compressed-tensors", "awq", "gptq", "mxfp4", "modelopt", "modelopt_fp4", "modelopt_mxfp8")


def families() -> list[str]:
    rows = ["| family | architectures | tool calls | reasoning |", "|---|---|---|---|"]
    return rows + [row(family) for family in (*profiles.load_profiles().families, profiles.load_profiles().formats)]


def row(family: Family) -> str:
    architectures = " ".join(f"`{name}`" for name in family.architectures) or "any other"
    cells = (family.name or "–", architectures, choices(family.tools), choices(family.reasoning))
    return f"| {' | '.join(cells)} |"


def choices(found: tuple[ParserChoice, ...]) -> str:
    return "<br>".join(f"`{choice.parser}`{condition(choice)}" for choice in found) or "–"


def condition(choice: ParserChoice) -> str:
    marks = [f"“{mark}”" for mark in choice.holds] + [f"no “{mark}”" for mark in choice.lacks]
    text = ", ".join(marks) or ("no template" if choice.no_template else "")
    return f" ({text})".replace("<", "&lt;").replace("|", "&#124;") if text else ""


def quantizations() -> list[str]:
    known = abilities.load_abilities()
    rows = ["| format | NVIDIA, compute capability | ROCm | processor |", "|---|---|---|---|"]
    for method in QUANTIZATIONS:
        lowest = max(75, known.quantizations[method])
        cpu = "no" if method in known.quantizations_without_cpu else "yes"
        cpu = "yes; with AMX only where scales are for blocks" if method == "fp8" else cpu
        rocm = "yes" if method in known.rocm_quantizations else "no"
        rows.append(f"| `{method}` | {lowest // 10}.{lowest % 10} | {rocm} | {cpu} |")
    assert "bitsandbytes" not in known.quantizations
    return [
        *rows,
        "| GGUF | no: needs the plugin `vllm-gguf-plugin`, which is no part of the engine | no | no |",
        f"| bitsandbytes | no: vLLM {known.version} has dropped it | no | no |",
    ]


def models() -> list[str]:
    rows = ["| model | parameters | format | weights |", "|---|---|---|---|"]
    for family in profiles.load_profiles().families:
        for model in family.models:
            name = formats.recognise(About(model.config)).name
            rows.append(f"| `{model.id}` | {model.parameters / 1e9:.1f} B | {name} | {model.bytes / 2**30:.1f} GiB |")
    return rows


@pytest.mark.parametrize("name", ["families", "formats", "models"])
def test_a_table_of_the_page_is_the_golden_one(name: str) -> None:
    table = {"families": families, "formats": quantizations, "models": models}[name]
    part = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end -->)", re.DOTALL)
    wanted = part.sub(lambda _: "\n".join(table()) + "\n", PAGE.read_text(), count=1)
    if os.environ.get("GOLDEN") == "write":
        PAGE.write_text(wanted)
    assert PAGE.read_text() == wanted
