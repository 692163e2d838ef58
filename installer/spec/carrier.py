"""What has an engine's packages and a model's files with it, for a host that can fetch neither."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from installer.base.report import Advance, Report
from installer.spec.model import ModelFile


class Carrier(Protocol):
    """Puts what it carries where it is told, verified."""

    @property
    def path(self) -> Path: ...

    @property
    def wheel_bytes(self) -> int: ...

    @property
    def image_bytes(self) -> int: ...

    def of_adapter(self, name: str) -> Carrier | None: ...

    def bring_wheels(self, directory: Path, report: Report) -> None: ...

    def bring_image(self, target: Path, report: Report) -> None: ...

    def bring_file(self, file: ModelFile, target: Path, advance: Advance) -> None: ...
