"""Letting a service go: its unit needs none of vllm-install any more, and nothing here remembers it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from installer.base.changes import Change, Remove, Run, Write
from installer.base.errors import Refused
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import STATES, Layout
from installer.base.report import Report
from installer.flow.converge import never_proved, put_back, settled
from installer.flow.transaction import Transaction, apply, changing
from installer.flow.watched import check_free
from installer.spec.group import load_group
from installer.spec.records import managed
from installer.spec.state import State
from installer.units import alarm, keyring
from installer.units.render import DIGEST_VARIABLE, fingerprint

HEAD = """# This unit is yours: vllm-install does not manage it. It stays the one place that says what runs.
# Keys: each --api-key stands in ExecStart and in ExecReload, as sha256:DIGEST (printf %s KEY | sha256sum) or as
# the key itself; after an edit: systemctl daemon-reload && systemctl reload {service}
# Anything else: edit it, then systemctl daemon-reload && systemctl restart {service}
"""


def plan(service: str, host: Host) -> list[Change]:
    layout = Layout(service)
    if _is_let_go(host, layout):
        return list(_forgetting(layout))
    return list(_changes(managed(host, layout), host, layout))


def _is_let_go(host: Host, layout: Layout) -> bool:
    """Whether an ejection was cut off when the service was the admin's already, but not all of our record was gone."""
    return (
        host.exists(layout.ejected_probe_key) and host.exists(layout.state_dir) and not host.exists(layout.state_file)
    )


def eject(service: str, host: Host, report: Report) -> list[Change]:
    """The service runs on through all of this; interrupted, any next command undoes it or this one completes it."""
    layout = Layout(service)
    with changing(layout, "eject", host):
        if _is_let_go(host, layout):
            changes = plan(service, host)
            apply(changes, host, report)
            return changes
        state = settled(host, layout, report)
        if state.proved is None:
            raise never_proved(layout)
        if state.proved.replicas:
            raise Refused(
                tr("{service} stands behind a gateway, which needs vllm-install", service=service),
                tr("let it be one engine first: vllm-install set REPLICAS=1 TLS=none TLS_CERT= TLS_KEY= FALLBACK_URL="),
            )
        if load_group(host, layout):
            raise Refused(
                tr("{service} is on several hosts, which vllm-install holds together", service=service),
                tr("let this host go first, from another one: vllm-install hosts remove NAME"),
            )
        check_free(state, layout)
        ejection = _Ejection(state, host, layout, report)
        ejection.run()
        return list(ejection.changes)


class _Ejection(Transaction):
    """Nothing is restarted, so there is nothing to prove; and nobody to remember it: the record is among what goes."""

    def __init__(self, state: State, host: Host, layout: Layout, report: Report) -> None:
        super().__init__(layout, list(_changes(state, host, layout)), host, report)
        self.state, self.settings_text = state, host.read(layout.settings_file)

    def claim(self) -> None:
        texts = [change for change in self.changes if isinstance(change, Write)]

        def claimed(now: State) -> State:
            owned = dict(now.owned)
            for change in texts:
                digest = fingerprint(change.text, change.path, self.layout)
                owned[str(change.path)] = (*owned.get(str(change.path), ()), digest)
            return dataclasses.replace(now, owned=owned, pending="eject")

        keyring.update(self.state, claimed, self.host, self.layout, self.report)

    def apply(self) -> None:
        """With the keys that the unit has now; nobody changes one until it is the admin's."""
        with keyring.locked(self.host, self.layout, self.report, "eject"):
            self.changes = list(_changes(self.state, self.host, self.layout))
            super().apply()

    def prove(self) -> None: ...

    def remember(self) -> None: ...

    def undo(self, why: str) -> str:
        if not self.host.exists(self.layout.state_file):
            return tr("the service is yours already, and runs on")
        return put_back(self.state, self.settings_text, why, self.host, self.layout, self.report)


def _changes(state: State, host: Host, layout: Layout) -> Iterator[Change]:
    text = host.read(layout.unit)
    if not text:
        raise Refused(tr("{unit} is not there", unit=layout.unit), f"vllm-install deploy --service {layout.service}")
    yield Write(layout.ejected_probe_key, host.read(layout.probe_key) or "", 0o600, secret=True)
    secret = any(key.plain for key in keyring.unit_keys(host, layout))
    yield Write(layout.unit, plain_unit(text, layout), host.mode(layout.unit) or 0o644, secret)
    yield Run(("systemctl", "daemon-reload"), tr("make systemd read the unit"))
    yield from alarm.ending(layout, host)
    if str(layout.settings_file) in state.owned:
        yield Remove(layout.settings_file)
    yield Remove(layout.state_file)  # from here on it is nobody's but the admin's
    yield from _forgetting(layout)


def _forgetting(layout: Layout) -> Iterator[Change]:
    """What is left of our record goes whole: of an adopted service it holds the old unit, and so perhaps a key."""
    yield Remove(layout.state_dir)
    for directory in (STATES, layout.settings_file.parent):
        yield Remove(directory, only_if_empty=True)


def plain_unit(text: str, layout: Layout) -> str:
    """The same unit, whatever was edited into it by hand, without what only vllm-install reads."""
    text = re.sub(r"\A(?:#.*\n)*", HEAD.format(service=layout.service), text)
    text = re.sub(rf'^Environment="?{DIGEST_VARIABLE}=.*\n', "", text, flags=re.MULTILINE)
    text = re.sub(rf"^OnFailure={re.escape(alarm.unit(layout))}\n", "", text, flags=re.MULTILINE)
    return text.replace(f"probe-key:{layout.probe_key}", f"probe-key:{layout.ejected_probe_key}")
