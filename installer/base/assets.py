"""Where the files shipped beside the code lie: in a checkout, an editable install and a wheel."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
RUNTIME = PACKAGE / "runtime"
DATA = PACKAGE / "data"


def asset_dir(name: str) -> Path:
    """`templates` or `units`: inside the package in a wheel, beside it in a checkout."""
    packaged = PACKAGE / "assets" / name
    return packaged if packaged.is_dir() else PACKAGE.parent / name
