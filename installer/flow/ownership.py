"""What is ours on this host: files of others are never replaced, files of ours not if somebody edited them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path

from installer.base.changes import Change, Write
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import UNITS, Layout
from installer.spec.problem import Problem
from installer.spec.records import owned_on
from installer.spec.state import State
from installer.units import alarm, soaking
from installer.units.render import fingerprint
from installer.units.systemd import unit_properties

DIFF_LINES = 40


def objections(
    changes: Iterable[Change],
    host: Host,
    layout: Layout,
    state: State,
    *,
    discard_edits: bool,
    replaced: frozenset[Path] = frozenset(),
) -> Iterator[Problem]:
    """Every reason why these changes would destroy something that is not ours to destroy."""
    owned, changes = owned_on(host), tuple(changes)
    for change in changes:
        if not isinstance(change, Write) or not is_claimed(change.path, layout) or change.path == layout.settings_file:
            continue
        text = host.read(change.path)
        if text is None or change.path in replaced:
            continue
        if change.path not in owned:
            yield _stranger(change.path)
        elif text == "" and layout.has_unit(change.path.name):
            yield _masked(change.path, layout)
        elif not discard_edits and fingerprint(text, change.path, layout) not in owned[change.path]:
            yield _edited(change, text)
    if not state.owned and not (state.former and state.former.ejected):
        replicas = [
            change.path for change in changes if isinstance(change, Write) and layout.number_of(change.path.name)
        ]
        yield from _check_names(host, layout, [layout.unit, *replicas])


def is_claimed(path: Path, layout: Layout) -> bool:
    """Whether ownership of the path is recorded; all in our own directory in /opt, of a soak and an alarm is ours."""
    return layout.opt not in path.parents and path not in (*soaking.paths(layout), *alarm.paths(layout))


def _stranger(path: Path) -> Problem:
    return Problem(
        tr("{path} exists already", path=path),
        tr("vllm-install did not make it, and never replaces what it did not make"),
        tr("choose another name with --service, or move it away: mv {path} {path}.before", path=path),
    )


def _masked(unit: Path, layout: Layout) -> Problem:
    return Problem(
        tr("{unit} is masked", unit=unit),
        tr("somebody switched this service off on purpose"),
        f"systemctl unmask {unit.stem} && vllm-install deploy --service {layout.service}",
    )


def _edited(change: Write, text: str) -> Problem:
    difference = difflib.unified_diff(
        change.text.splitlines(), text.splitlines(), tr("as vllm-install writes it"), tr("as it is now"), lineterm=""
    )
    shown = [f"    {line}" for line in difference][:DIFF_LINES]
    in_drop_in = tr(
        "move the edit into a drop-in (systemctl edit {unit}), or overwrite it with --discard-edits",
        unit=change.path.name,
    )
    return Problem(
        tr("{path} was edited by hand", path=change.path),
        tr("this would be lost:") + "\n" + "\n".join(shown),
        in_drop_in if change.path.parent == UNITS else tr("overwrite it with --discard-edits"),
    )


def _check_names(host: Host, layout: Layout, units: list[Path]) -> Iterator[Problem]:
    """A service name that already means something to this host would mix up two services' files."""
    for unit in units:
        found = unit_properties(host, unit.name, "FragmentPath").get("FragmentPath", "")
        if found and found != str(unit):
            yield Problem(
                tr("{path} exists already", path=unit.name),
                tr("it is {found}, which is not ours", found=found),
                tr("choose another name with --service"),
            )
    # systemd gives these to the service's account, and they go with it: imagine a service called user, and /run/user.
    of_units = (layout.run_dir.parent / unit.stem for unit in units)
    for directory in (layout.cache_dir, layout.usage_dir, *of_units):
        if host.exists(directory):
            yield Problem(
                tr("{path} exists already", path=directory),
                tr("it would become a directory of the service, and go with it"),
                tr("choose another name with --service, or move it away: mv {path} {path}.before", path=directory),
            )
