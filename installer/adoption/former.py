"""The unit that a service was adopted from: set aside while ours is proved, and put back if it is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from installer.base.changes import Change, Remove, Run, Write
from installer.base.errors import Refused
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import Layout
from installer.spec.former import Former
from installer.units.syntax import quote


def of(
    unit: str, files: tuple[Path, ...], properties: dict[str, str], host: Host, layout: Layout, *, ejected: bool = False
) -> Former:
    """`properties` are the unit's UnitFileState and ActiveState."""
    own = (files[0], *(path for path in files[1:] if is_own(path, unit)))
    for path in own:
        if host.at(path).is_symlink():
            raise Refused(
                tr("{path} is a link, which systemctl disable would remove", path=path),
                tr("make it a file first: cp --remove-destination $(readlink -f {path}) {path}", path=path),
            )
    if unit == layout.unit_name and files[0] != layout.unit:
        raise Refused(
            tr("{unit} comes from {file}, which is a package's", unit=unit, file=files[0]),
            tr("choose another name with --service"),
        )
    here = own if unit == layout.unit_name else ()
    if here and ejected and host.exists(layout.ejected_probe_key):
        here = (*here, layout.ejected_probe_key)
    return Former(
        unit,
        enabled=properties.get("UnitFileState") == "enabled",
        active=properties.get("ActiveState") in ("active", "activating", "reloading"),
        files=tuple((path, host.mode(path) or 0o644) for path in here),
        ejected=ejected and unit == layout.unit_name,
    )


def is_own(drop_in: Path, unit: str) -> bool:
    """Written on this host for this unit: others hold for several units, or are a package's, and stay."""
    return drop_in.parent.name == f"{unit}.d" and any(map(drop_in.is_relative_to, ("/etc", "/run", "/usr/local")))


def backup(layout: Layout, path: Path) -> Path:
    return layout.state_dir / "adopted-from" / path.relative_to("/")


def keep(former: Former, host: Host, layout: Layout) -> None:
    """Copies only root can read, because a hand-written unit may hold a key; they are there before anything changes."""
    for path, _ in former.files:
        host.write(backup(layout, path), host.read(path) or "", 0o600)


def set_aside(former: Former) -> Iterator[Change]:
    yield Run(
        ("systemctl", "disable", "--now", former.unit),
        tr("stop {unit}, whose place the service takes", unit=former.unit),
    )
    yield from (Remove(path) for path, _ in former.files[1:])  # drop-ins of the old unit would apply to ours


def in_place(former: Former, host: Host, layout: Layout) -> bool:
    """Whether all of its files are still, or again, what they were."""
    return all(host.read(path) == host.read(backup(layout, path)) for path in former.paths)


def put_back(former: Former, host: Host, layout: Layout) -> Iterator[Change]:
    for path, mode in former.files:
        text = host.read(backup(layout, path))
        if text is not None and host.read(path) != text:
            yield Write(path, text, mode, secret=True)


def start_again(former: Former) -> Iterator[Change]:
    if former.enabled:
        yield Run(("systemctl", "enable", former.unit), tr("start {unit} at every boot again", unit=former.unit))
    if former.active:
        yield Run(("systemctl", "start", former.unit), tr("start {unit} again", unit=former.unit))


def drop_in(folder: Path, environment: tuple[tuple[str, str], ...]) -> Write:
    lines = [f"Environment={quote(f'{name}={value}')}" for name, value in environment]
    head = "# Variables that came along with vllm-install adopt."
    return Write(folder / "adopted.conf", "\n".join([head, "[Service]", *lines, ""]))
