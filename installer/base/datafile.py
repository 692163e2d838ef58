"""Reading our own data files strictly: every field is asked for by name and type, and none is left unread."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from installer.base.errors import InstallError
from installer.base.language import tr


class DataError(InstallError):
    """A file that is shipped with this tool is not as its reader expects."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}", tr("install vllm-install again; its files were changed"))


@dataclass(frozen=True)
class Section:
    """An object of a data file, and where it stands, for the error that names it."""

    where: str
    content: Mapping[str, object]

    @classmethod
    def of(cls, where: str, value: object, required: str, optional: str = "") -> Section:
        """The object with exactly these fields, named with spaces between."""
        if not isinstance(value, dict):
            raise DataError(where, tr("expected an object"))
        needed, allowed = set(required.split()), set(required.split()) | set(optional.split())
        for name in sorted(needed - value.keys()):
            raise DataError(where, tr("{name} is missing", name=name))
        for name in sorted(value.keys() - allowed):
            raise DataError(where, tr("{name} is no field of it", name=name))
        return cls(where, value)

    def text(self, name: str) -> str:
        value = self.content.get(name, "")
        if not isinstance(value, str) or (name in self.content and not value.strip()):
            raise self._expected(name, tr("a text"))
        return value

    def number(self, name: str) -> int:
        value = self.content.get(name, 0)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self._expected(name, tr("a whole number"))
        return value

    def flag(self, name: str) -> bool:
        value = self.content.get(name, False)
        if not isinstance(value, bool):
            raise self._expected(name, tr("true or false"))
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        value = self.content.get(name, [])
        if not isinstance(value, list) or not all(isinstance(one, str) and one.strip() for one in value):
            raise self._expected(name, tr("a list of texts"))
        if len(set(value)) != len(value):
            raise DataError(self.where, tr("{name} names one thing twice", name=name))
        return tuple(value)

    def mapping(self, name: str) -> Mapping[str, object]:
        value = self.content.get(name, {})
        if not isinstance(value, dict):
            raise self._expected(name, tr("an object"))
        return value

    def sections(self, name: str, required: str, optional: str = "") -> list[Section]:
        value = self.content.get(name, [])
        if not isinstance(value, list):
            raise self._expected(name, tr("a list of objects"))
        return [Section.of(f"{self.where}, {name} {i}", one, required, optional) for i, one in enumerate(value, 1)]

    def _expected(self, name: str, what: str) -> DataError:
        return DataError(self.where, tr("{name} should be {what}", name=name, what=what))


def read(path: Path, required: str) -> Section:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(path.name, error.strerror or tr("it cannot be read")) from None
    except ValueError as error:
        raise DataError(path.name, str(error)) from None
    return Section.of(path.name, content, required)
