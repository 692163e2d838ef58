"""The list of modules in docs/architecture.md, made of the line that each says about itself."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from scripts.reference import escape, table

REPO = Path(__file__).resolve().parent.parent
PAGE = REPO / "docs/architecture.md"


def architecture() -> str:
    """The page, its list as the modules are now."""
    listed = "\n".join(table(("module", ""), _rows()))
    return re.sub(r"(?<=<!-- modules -->\n).*(?=<!-- end -->)", lambda _: f"{listed}\n", PAGE.read_text(), flags=re.S)


def _rows() -> Iterator[tuple[str, str]]:
    for path in sorted((REPO / "installer").rglob("*.py")):
        said = ast.get_docstring(ast.parse(path.read_text()))
        if said and path.name != "__init__.py":
            yield f"`{path.relative_to(REPO / 'installer')}`", escape(said.partition("\n")[0])


if __name__ == "__main__":
    PAGE.write_text(architecture())
