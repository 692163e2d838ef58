"""What we know about a service between two commands: what was proved last, what we made, what is under way."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pwd
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from installer.base.errors import Refused, UsageError
from installer.base.host import Host, Strange
from installer.base.language import tr
from installer.base.layout import STATES, Layout
from installer.spec import keys
from installer.spec.calibration import Calibration
from installer.spec.engine import Engine
from installer.spec.former import Former
from installer.spec.model import Model
from installer.spec.profile import Profile
from installer.spec.settings import FIELDS, load, to_text
from installer.spec.target import Placed, Target
from installer.spec.toolkit import Toolkit

VERSION = 1
LONGEST = 4 * 1024 * 1024  # bytes of a record; a real one has some ten thousand
HISTORY = 20


@dataclass(frozen=True)
class Event:
    when: str
    who: str
    what: str
    outcome: str


class Damaged(Refused):
    """The record of a service cannot be read; what is not about that service goes on without it."""


@dataclass(frozen=True)
class Rekeying:
    """A change of keys that has not finished: what it is, and the unit's keys before it."""

    what: str
    before: tuple[str, ...]


@dataclass(frozen=True)
class State:
    service: str
    # path -> digests of what we wrote there; more than one while a change is under way
    owned: dict[str, tuple[str, ...]] = field(default_factory=dict)
    owns_user: bool = False
    proved: Target | None = None
    previous: Target | None = None  # the generation before, to which rollback returns
    calibration: Calibration | None = None  # what vLLM measured when `proved` was proved
    pending: str | None = None  # the command that has not finished, if one was cut off
    pending_model: str | None = None  # the path of the model that it works towards
    pending_engine: str | None = None  # the id of the engine that it works towards
    rekeying: Rekeying | None = None
    key_shown: bool = False
    former: Former | None = None  # the unit that the service was adopted from
    history: tuple[Event, ...] = ()

    @property
    def engines(self) -> set[str]:
        """The ids of those that it runs, could roll back to, or works towards."""
        found = {target.engine.id for target in (self.proved, self.previous) if target}
        return found | ({self.pending_engine} if self.pending_engine else set())

    @property
    def unfinished(self) -> str | None:
        """The command that was cut off, if nobody is at it now."""
        return self.pending or (self.rekeying.what if self.rekeying else None)


def load_state(host: Host, layout: Layout) -> State | None:
    """The record, from a file that only root can have written; whatever else lies there is Damaged."""
    try:
        text = host.read_of(layout.state_file, (0, os.geteuid()), LONGEST)
        return None if text is None else _state(json.loads(text), layout)
    except Damaged:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError) as error:
        reason = tr("{what}: {why}", what=type(error).__name__, why=error)
    except Strange as error:
        reason = error.message
    except IsADirectoryError as error:
        reason = error.strerror or ""
    raise Damaged(
        tr("{path} cannot be read: {reason}", path=layout.state_file, reason=reason),
        tr(
            "move it away and run deploy again, which names what else is in its way: mv {path} /root/",
            path=layout.state_file,
        ),
    )


def _state(data: dict[str, Any], layout: Layout) -> State:
    if data["version"] != VERSION:
        what = tr(
            "{path} was written by another version of vllm-install (format {format})",
            path=layout.state_file, format=data["version"],
        )  # fmt: skip
        raise Damaged(what, tr("install the newer version of vllm-install again"))
    return State(
        service=data["service"],
        owned={path: tuple(digests) for path, digests in data["owned"].items()},
        owns_user=data["owns_user"],
        proved=_target(data["proved"], layout.service) if data["proved"] else None,
        previous=_target(data["previous"], layout.service) if data["previous"] else None,
        calibration=Calibration(**data["calibration"]) if data["calibration"] else None,
        pending=data["pending"],
        pending_model=data.get("pending_model"),
        pending_engine=data.get("pending_engine"),
        rekeying=_rekeying(data["rekeying"]) if data.get("rekeying") else None,
        key_shown=data["key_shown"],
        former=_former(data["former"]) if data.get("former") else None,
        history=tuple(Event(**event) for event in data["history"]),
    )


def readable_state(host: Host, layout: Layout) -> State | None:
    """What is known of a service by what is about another one."""
    try:
        return load_state(host, layout)
    except Damaged:
        return None


def readable_states(host: Host, of: Iterable[Layout]) -> list[State] | None:
    """Of several services; None where the record of one cannot be read, so that nobody knows what it needs."""
    try:
        found = [load_state(host, layout) for layout in of]
    except Damaged:
        return None
    return [state for state in found if state]


def check_records(host: Host) -> None:
    """Refuse what takes away what nobody needs while nobody knows who needs what."""
    for service in services(host):
        load_state(host, Layout(service))


def managed(host: Host, layout: Layout) -> State:
    """The state of a service that is ours, or the refusal that names those that are."""
    state = load_state(host, layout)
    if state is None:
        known = ", ".join(services(host)) or tr("none yet; make one with: sudo vllm-install deploy")
        raise Refused(
            tr("vllm-install manages no service {service} on this host", service=layout.service),
            tr("services it manages: {known}", known=known),
        )
    return state


def save_state(host: Host, layout: Layout, state: State) -> None:
    data = {
        "version": VERSION,
        "service": state.service,
        "owned": state.owned,
        "owns_user": state.owns_user,
        "proved": _target_data(state.proved) if state.proved else None,
        "previous": _target_data(state.previous) if state.previous else None,
        "calibration": state.calibration.to_json() if state.calibration else None,
        "pending": state.pending,
        "pending_model": state.pending_model,
        "pending_engine": state.pending_engine,
        "rekeying": dataclasses.asdict(state.rekeying) if state.rekeying else None,
        "key_shown": state.key_shown,
        "former": state.former.to_json() if state.former else None,
        "history": [dataclasses.asdict(event) for event in state.history[-HISTORY:]],
    }
    host.write(layout.state_file, json.dumps(data, indent=2) + "\n")


def event(what: str, outcome: str) -> Event:
    return Event(datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"), _who(), what, outcome)


def _who() -> str:
    """Whom sudo was run by, or else whose process this is."""
    name = os.environ.get("SUDO_USER") or os.environ.get("DOAS_USER")
    if name and re.fullmatch(r"[\w.@\\-]{1,64}", name):
        return name
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def text_digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def services(host: Host) -> list[str]:
    """Every service that this tool manages on the host."""
    return [path.name for path in host.children(STATES) if host.exists(path / "state.json")]


def ejected(host: Host) -> dict[str, str]:
    """Services that run on our engines but are no longer ours, and their units: what these need stays."""
    managed, runtimes = services(host), f"{Layout('any').runtimes}/"
    units = [path for path in host.children(Path("/etc/systemd/system")) if path.suffix == ".service"]
    texts = {path.stem: host.read(path) or "" for path in units if host.at(path).is_file()}
    return {name: text for name, text in texts.items() if name not in managed and runtimes in text}


def owned_on(host: Host) -> dict[Path, set[str]]:
    """Every file that is ours on this host, with what we may have written there; some belong to several services."""
    owned: dict[Path, set[str]] = {}
    for service in services(host):
        state = readable_state(host, Layout(service))
        for path, digests in state.owned.items() if state else ():
            owned.setdefault(Path(path), set()).update(digests)
    return owned


def _target_data(target: Target) -> dict[str, object]:
    return {
        "settings": {name: to_text(name, getattr(target.settings, name)) for name in FIELDS},
        "engine": _plain(target.engine),
        "model": _plain(dataclasses.replace(target.model, files=())),
        "profile": target.profile.to_json(),
        "toolkit": target.toolkit.to_json() if target.toolkit else None,
        # A key that the unit holds verbatim is kept by its digest: it stays valid, and this file stays harmless.
        "keys": [dataclasses.replace(key, plain=None).argument for key in target.keys],
        "gpus": [dataclasses.asdict(gpu) for gpu in target.gpus],
    }


def _rekeying(data: dict[str, Any]) -> Rekeying:
    return Rekeying(data["what"], tuple(data["before"]))


def _former(data: dict[str, Any]) -> Former:
    return Former(**{**data, "files": tuple((Path(path), mode) for path, mode in data["files"])})


def _plain(value: Engine | Model) -> dict[str, object]:
    return {name: str(item) if isinstance(item, Path) else item for name, item in dataclasses.asdict(value).items()}


def _target(data: dict[str, Any], service: str) -> Target:
    settings = load(service, {FIELDS[n].metadata["names"][0]: v for n, v in data["settings"].items()}, {}, {})
    engine = {**data["engine"], "python": Path(data["engine"]["python"])}
    model = {**data["model"], "path": Path(data["model"]["path"]), "files": ()}
    profile = data.get("profile")  # none in what was written before there were profiles
    return Target(
        settings=settings,
        engine=Engine(**engine),
        model=Model(**model),
        keys=tuple(keys.parse(argument) for argument in data["keys"]),
        profile=Profile(**{**profile, "needs": tuple(profile["needs"])}) if profile else Profile(),
        gpus=tuple(Placed(**gpu) for gpu in data.get("gpus", [])),  # none in what was written before they were chosen
        toolkit=Toolkit(**data["toolkit"]) if data.get("toolkit") else None,
    )
