"""The form in which a state is kept, with its version. Reading is lenient: nothing in a record is judged as input.

A field that this version does not know is passed over, one that is missing has its default. A setting is taken as it
was proved, by its type alone, also where it could not be chosen any more; its default where not even the type fits.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, is_dataclass, replace
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from installer.base.errors import UsageError
from installer.spec import keys
from installer.spec.settings import FIELDS, Settings, of_text, to_text
from installer.spec.state import State
from installer.spec.target import Target

T = TypeVar("T")
VERSION = 7  # one more whenever a tool that knows less would lose something by writing the record
HISTORY = 20
# From a version to the next: what such a record says, in the words of the next one.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: lambda data: data,  # of no replica, which is what a missing field says
    2: lambda data: data,  # of vLLM, which is what a missing field says
    3: lambda data: data,  # of no adapter, which is what a missing field says
    4: lambda data: data,  # of a virtual environment, which is what a missing field says
    5: lambda data: data,  # of one host, which is what a missing field says
    6: lambda data: data,  # of a gateway before one host, which is what a missing field says
}
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError)
MADE: dict[Any, Callable[[str], Any]] = {Path: Path, keys.Key: keys.parse}
types = cache(get_type_hints)
IN_JSON: dict[Any, Any] = {tuple: list, int: (int, float), float: (int, float), **dict.fromkeys(MADE, str)}


def to_record(state: State) -> str:
    data = {"version": VERSION, **asdict(replace(state, history=state.history[-HISTORY:]))}
    for name, target in (("proved", state.proved), ("previous", state.previous)):
        if target:
            data[name]["settings"] = {each: to_text(each, getattr(target.settings, each)) for each in FIELDS}
            # A key that the unit holds verbatim is kept by its digest: it stays valid, and this file stays harmless.
            data[name]["keys"] = [replace(key, plain=None).argument for key in target.keys]
            for model in (data[name]["model"], *(adapter["model"] for adapter in data[name]["adapters"])):
                model["files"] = []
    return json.dumps(data, indent=2, default=str) + "\n"


def of_record(text: str, service: str) -> tuple[int, State]:
    """The version and the state; of a newer version as much as is understood. Raises what is UNREADABLE."""
    data = json.loads(text)
    for old in range(version := data["version"], VERSION):
        data = MIGRATIONS[old](data)
    state: State = _read(State, data, version > VERSION)
    return version, replace(state, proved=_of(service, state.proved), previous=_of(service, state.previous))


def _of(service: str, target: Target | None) -> Target | None:
    return target and replace(target, settings=replace(target.settings, service=service))


def read_as(kind: type[T], data: object) -> T:
    """Data of ours that is no record, read back the same way."""
    found: T = _read(kind, data, False)
    return found


def _read(kind: Any, data: Any, newer: bool) -> Any:
    """A value of that type, or what is UNREADABLE."""
    of, origin = get_args(kind), get_origin(kind) or kind
    if origin is UnionType:
        return None if data is None else _read(of[0], data, newer)
    form: Any = IN_JSON.get(origin, dict if is_dataclass(kind) else origin)
    if not isinstance(data, form):
        raise TypeError(f"{type(data).__name__} in place of {origin.__name__}")
    if kind in MADE:
        return MADE[kind](data)
    if is_dataclass(kind):
        return _fields(kind, data, newer)
    if origin is dict:
        return {name: _read(of[1], value, newer) for name, value in data.items()}
    if origin is tuple:
        kinds = [of[0]] * len(data) if of[-1] is ... else of
        return tuple(_read(each, value, newer) for each, value in zip(kinds, data, strict=True))
    return data


def _fields(kind: Any, data: dict[str, Any], newer: bool) -> Any:
    """In a newer record what cannot be read is missing; but of what is not known to be ours nothing is taken away."""
    found = {}
    for name, of in types(kind).items():
        try:
            if kind is Settings and name in data:
                found[name] = of_text(name, _read(str, data[name], newer))
            elif name in data or name == "owned":
                found[name] = _read(of, data[name], newer)
        except UNREADABLE:
            if kind is not Settings and (not newer or name == "owned"):
                raise
    return kind(**found)
