"""Changing what a key may use: a file that the service looks at once a second, so nothing is restarted for it."""

from __future__ import annotations

from collections.abc import Mapping

from installer.base.errors import UsageError
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import Layout
from installer.base.report import Report
from installer.runtime import vllm_limits
from installer.runtime.vllm_limits import NO_LIMIT, Limit
from installer.spec import keys, limits
from installer.spec.records import managed
from installer.units import keyring
from installer.units.graph import members, on_disk


def of_service(host: Host, layout: Layout) -> dict[str, Limit]:
    """What stands in the file; a line in which something else does limits nobody."""
    return vllm_limits.parse(host.read(layout.limits_file) or "")[0]


def change(service: str, name: str, given: Mapping[str, str] | None, host: Host, report: Report) -> Limit:
    """`given` is what is to change of a key's limit; None lifts all of it."""
    layout = Layout(service)
    state = managed(host, layout)
    with keyring.alone(host, layout, report, f"keys limit {name}"):
        there, held = of_service(host, layout), limits.accounts(keyring.unit_keys(host, layout))
        _check(name, held)
        limit = limits.changed(there.get(name, NO_LIMIT), given) if given is not None else NO_LIMIT
        _write({**there, name: limit}, held, host, layout)
    if limit.priority != "normal" and state.proved and state.proved.settings.scheduling != "priority":
        report.warn(tr("priorities count with SCHEDULING=priority only: sudo vllm-install set SCHEDULING=priority"))
    if limit != NO_LIMIT and not _is_read(host, layout):
        report.warn(
            tr(
                "{service} was deployed before there were limits, and reads none: sudo vllm-install deploy "
                "--service {service}",
                service=service,
            )
        )
    return limit


def forget(name: str, host: Host, layout: Layout, report: Report) -> None:
    """With a key that is gone goes its limit: the next of that name is somebody else's."""
    if name in of_service(host, layout):
        with keyring.alone(host, layout, report, f"keys revoke {name}"):
            _write(of_service(host, layout), limits.accounts(keyring.unit_keys(host, layout)), host, layout)


def _check(name: str, held: list[str]) -> None:
    if name == keys.PROBE:
        raise UsageError(tr("the probe key has no limits: the service is watched with it"))
    limits.check_account(name, held)


def _write(wanted: Mapping[str, Limit], held: list[str], host: Host, layout: Layout) -> None:
    text = limits.to_text({name: limit for name, limit in wanted.items() if name in held})
    if text:
        host.write(layout.limits_file, text, 0o644)
    else:
        host.remove(layout.limits_file)


def _is_read(host: Host, layout: Layout) -> bool:
    units = (*members(layout), *on_disk(host, layout))
    return any(f"LIMITS={layout.limits_file}" in (host.read(unit.path) or "") for unit in units)
