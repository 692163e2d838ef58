"""Building a wheel makes the man page, out of the command line that is in the same wheel."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ManPage(BuildHookInterface[BuilderConfig]):
    def initialize(self, version: str, build_data: dict[str, dict[str, str]]) -> None:
        if version == "editable":
            return
        sys.path.insert(0, self.root)  # a build runs outside of the checkout
        from scripts.manpage import NAME, manpage

        self._folder = tempfile.TemporaryDirectory()  # the checkout may be read-only; it goes with this process
        page = Path(self._folder.name, NAME)
        page.write_text(manpage())
        build_data["shared_data"][str(page)] = f"share/man/man8/{NAME}"
