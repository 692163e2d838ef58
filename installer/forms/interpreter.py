"""The Python on the host that runs what is ours beside an engine."""

from __future__ import annotations

from pathlib import Path

from installer.base.layout import Layout
from installer.forms.venv import python_of
from installer.spec.engine import Engine


def interpreter(engine: Engine, layout: Layout) -> Path:
    """The engine's own, or the host's where that is in an image."""
    return engine.python if engine.image else python_of(layout.engines / engine.id)
