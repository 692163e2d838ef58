"""Golden files: what we render, as a reader sees it in a review. `make golden` writes them anew."""

import os

from tests.kit.boot.surroundings import REPO

FOLDER = REPO / "tests/golden"


def golden(name: str, text: str) -> str:
    """The golden text, after it was made the given one where GOLDEN=write asks for that."""
    path = FOLDER / name
    if os.environ.get("GOLDEN") == "write":
        path.write_text(text)
    return path.read_text()
