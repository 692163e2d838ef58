"""What a change writes down of itself: what it is about to make ours, and what was proved."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from installer.base.changes import Change, Write
from installer.base.host import Host
from installer.base.layout import Layout
from installer.base.report import Report
from installer.flow import ownership
from installer.flow.wanted import Wanted
from installer.spec.calibration import Calibration
from installer.spec.records import owned_on, readable_state, services
from installer.spec.soak import BY_HAND, Soak
from installer.spec.state import State, event, text_digest
from installer.spec.target import Target
from installer.units import keyring, render
from installer.units.gateway import config_file
from installer.units.render import fingerprint
from installer.units.systemd import has_user


def claim(
    known: State, want: Wanted, changes: list[Change], host: Host, verb: str, report: Report, *, key_shown: bool
) -> State:
    """Every path that is about to be written, with the digest of its text, and the verb that has not finished."""
    layout = want.layout

    def claimed(now: State) -> State:
        owned = dict(now.owned)
        for change in changes:
            if isinstance(change, Write) and ownership.is_claimed(change.path, layout):
                path = str(change.path)
                written_by_admin = (
                    change.path == layout.settings_file and host.exists(change.path) and path not in owned
                )
                if not written_by_admin:
                    owned[path] = (*owned.get(path, ()), fingerprint(change.text, change.path, layout))
        # What another service of ours wrote and this one shares outlives that other one, so it becomes ours as well.
        for shared in render.shared_units().keys() & owned_on(host).keys():
            owned.setdefault(str(shared), (text_digest(host.read(shared) or ""),))
        return dataclasses.replace(
            now, owned=owned, owns_user=now.owns_user or not has_user(host, layout.user),
            owns_sysusers=now.owns_sysusers or _is_sysusers_ours(host, layout), key_shown=key_shown, pending=verb,
            pending_model=str(want.target.model.path), pending_engine=want.target.engine.id,
        )  # fmt: skip

    return keyring.update(known, claimed, host, layout, report)


def _is_sysusers_ours(host: Host, layout: Layout) -> bool:
    """Whether the directory is not there yet, or came with another service of ours."""
    others = [readable_state(host, Layout(name)) for name in services(host)]
    return not host.exists(layout.sysusers.parent) or any(other.owns_sysusers for other in others if other)


def remember(
    known: State, target: Target, host: Host, outcome: str, report: Report,
    measured: Calibration | None = None, soak: Soak | None = None,
) -> State:  # fmt: skip
    """The change is over: of each file only one text is ours, the one that is there; of the keys, those in the unit."""
    layout = Layout(target.settings.service)
    rendered = render.render(target, layout)

    def over(now: State) -> State:
        kept = {path: digests for path, digests in now.owned.items() if not _is_retired(Path(path), host, layout)}
        # A file that is as it should be is ours, also where somebody else put it back and nothing was due.
        made = {str(path): (fingerprint(file.text, path, layout),) for path, file in rendered.items()}
        owned = {path: _ours_now(path, (*old, *made.get(path, ())), host, layout) for path, old in kept.items()}
        history = (*now.history, event(now.pending or "deploy", outcome))
        proved = dataclasses.replace(target, keys=keyring.held_in_unit(host, layout) or target.keys)
        if now.former and now.former.ejected:  # it is ours again, with all that it had when it was let go
            left = {layout.sysusers: rendered[layout.sysusers].text, **render.shared_units()}
            owned |= {str(path): (text_digest(text),) for path, text in left.items() if host.read(path) == text}
            now = dataclasses.replace(now, former=None, owns_user=True)
        previous, watched = now.previous, soak or now.soak
        if now.proved and render.generation(now.proved, layout) != render.generation(target, layout):
            previous, watched = now.proved, soak or _over(now.soak)
        return dataclasses.replace(
            now, owned=owned, proved=proved, previous=previous, pending=None, pending_model=None, pending_engine=None,
            calibration=measured or now.calibration, history=history, soak=watched,
        )  # fmt: skip

    return keyring.update(known, over, host, layout, report)


def _over(soak: Soak | None) -> Soak | None:
    """What becomes of a soak when another generation is proved: of changes only a rollback is open during one."""
    return dataclasses.replace(soak, outcome=BY_HAND) if soak and soak.is_running else None


def _is_retired(path: Path, host: Host, layout: Layout) -> bool:
    """Of replicas that the service had, or the gateway before them."""
    return bool(layout.number_of(path.name) or path == config_file(layout)) and not host.exists(path)


def _ours_now(path: str, digests: tuple[str, ...], host: Host, layout: Layout) -> tuple[str, ...]:
    """What was claimed last may never have been written; a file that is none of ours was edited since."""
    found = fingerprint(host.read(Path(path)) or "", Path(path), layout)
    return (found,) if found in digests else digests[-1:]
