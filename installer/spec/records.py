"""The records of the services on this host: which there are, and what is known of one, to look at or to change it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from installer.base.errors import Refused
from installer.base.files import Strange
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import SENDER, STATES, UNITS, Layout
from installer.spec.record import UNREADABLE, VERSION, of_record, to_record
from installer.spec.state import State
from installer.spec.target import Target

LONGEST = 4 * 1024 * 1024  # bytes of a record; a real one has some ten thousand


class Damaged(Refused):
    """The record of a service cannot be used; what is not about that service goes on without it."""


def load_state(host: Host, layout: Layout, *, to_look: bool = False) -> State | None:
    """The record, from a file that only root can have written; whatever else lies there is Damaged.

    What a newer version of this tool wrote is there to look at only: writing it would lose what that one knows.
    """
    try:
        text = host.read_of(layout.state_file, (0, os.geteuid()), LONGEST)
        version, state = of_record(text, layout.service) if text is not None else (VERSION, None)
    except UNREADABLE as error:
        reason = tr("{what}: {why}", what=type(error).__name__, why=error)
    except (Strange, IsADirectoryError) as error:
        reason = getattr(error, "strerror", str(error))
    else:
        if version <= VERSION or to_look:
            return state
        raise Damaged(
            tr(
                "{path} was written by a newer version of vllm-install (format {format})",
                path=layout.state_file, format=version,
            ),
            tr("this version can show and uninstall the service; to change it, install the newer one again"),
        )  # fmt: skip
    raise Damaged(
        tr("{path} cannot be read: {reason}", path=layout.state_file, reason=reason),
        tr(
            "move it away and run deploy again, which names what else is in its way: mv {path} /root/",
            path=layout.state_file,
        ),
    )


def save_state(host: Host, layout: Layout, state: State) -> None:
    host.write(layout.state_file, to_record(state))


def readable_state(host: Host, layout: Layout) -> State | None:
    """What is known of a service by what is about another one, or by somebody who may not read it."""
    try:
        return load_state(host, layout, to_look=True)
    except (Damaged, PermissionError):
        return None


def readable_states(host: Host, of: Iterable[Layout]) -> list[State] | None:
    """Of several services; None where the record of one cannot be read whole, so that nobody knows what it needs."""
    try:
        return [state for layout in of if (state := load_state(host, layout))]
    except Damaged:
        return None


def check_records(host: Host) -> None:
    """Refuse what takes away what nobody needs while nobody knows who needs what."""
    for service in services(host):
        load_state(host, Layout(service))


def managed(host: Host, layout: Layout, *, to_look: bool = False) -> State:
    """The state of a service that is ours, or the refusal that names those that are."""
    state = load_state(host, layout, to_look=to_look)
    if state is None:
        known = ", ".join(services(host)) or tr("none yet; make one with: sudo vllm-install deploy")
        raise Refused(
            tr("vllm-install manages no service {service} on this host", service=layout.service),
            tr("services it manages: {known}", known=known),
        )
    return state


def proved_target(host: Host, layout: Layout) -> Target:
    """How clients find a service; one that never served has no clients."""
    if not (target := managed(host, layout, to_look=True).proved):
        raise Refused(
            tr("{service} has never been proved to serve", service=layout.service),
            f"sudo vllm-install deploy --service {layout.service}",
        )
    return target


def check_unmanaged(host: Host, layout: Layout) -> None:
    if load_state(host, layout) is not None:
        raise Refused(
            tr("{service} is managed by vllm-install already", service=layout.service),
            tr(
                "change it with vllm-install set --service {service}, or choose another name with --service",
                service=layout.service,
            ),
        )


def services(host: Host) -> list[str]:
    """Every service that this tool manages on the host."""
    return [path.name for path in host.children(STATES) if host.exists(path / "state.json")]


def ejected(host: Host) -> dict[str, str]:
    """Services that run on our engines but are no longer ours, and their units: what these need stays."""
    managed, runtimes = (*services(host), SENDER), f"{Layout('any').runtimes}/"
    units = [path for path in host.children(UNITS) if path.suffix == ".service"]
    texts = {path.stem: host.read(path) or "" for path in units if host.at(path).is_file()}
    return {name: text for name, text in texts.items() if name.partition("@")[0] not in managed and runtimes in text}


def owned_on(host: Host) -> dict[Path, set[str]]:
    """Every file that is ours on this host, with what we may have written there; some belong to several services."""
    owned: dict[Path, set[str]] = {}
    for service in services(host):
        state = readable_state(host, Layout(service))
        for path, digests in state.owned.items() if state else ():
            owned.setdefault(Path(path), set()).update(digests)
    return owned
