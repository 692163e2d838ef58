"""An engine as a virtual environment: its packages, its toolkit, its Python."""

from __future__ import annotations

from pathlib import Path


def python_of(engine: Path) -> Path:
    """The interpreter of an engine in this directory."""
    return engine / "bin/python"
