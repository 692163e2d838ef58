"""What is to be tested: a running service or a throwaway server, as far as the tests have to know it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence

from installer.acceptance.apitest import Subject
from installer.acceptance.replies import Failed
from installer.acceptance.trial import Trial
from installer.base.errors import InstallError, Refused, UsageError
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import Layout
from installer.base.report import Report
from installer.flow import prove
from installer.look.formats import KEY_VARIABLE
from installer.runtime import vllm_flags
from installer.spec.records import proved_target
from installer.spec.target import Target
from installer.units.api import Api, local_address
from installer.units.custody import Custody
from installer.units.gateway import certificate_of
from installer.units.graph import Member, handle, members
from installer.units.holding import holding
from installer.units.journal import invocation
from installer.units.syntax import exec_line
from installer.units.systemd import unit_properties


def of_service(
    service: str, given_key: str | None, host: Host, report: Report, timeout: float, number: int = 0,
    target: Target | None = None,
) -> Subject:  # fmt: skip
    """As its clients meet it; or of several replicas the one of that number, directly."""
    layout = Layout(service)
    target = target or proved_target(host, layout)  # in the middle of a change it is not proved yet
    unit = _unit_of(number, layout, target)
    key = given_key or _probe_key(host, layout) or os.environ.get(KEY_VARIABLE, "")
    if not key:
        raise Refused(
            tr("there is no key to ask {service} with", service=layout.service),
            f"sudo vllm-install doctor {layout.service}"
            if os.geteuid() == 0
            else tr(
                "run it as root, who may use the service's own probe key; or set {variable}, or give --key-file",
                variable=KEY_VARIABLE,
            ),
        )
    engine = next((each for each in members(layout, target) if number in (0, each.number)), unit)
    certificate = certificate_of(host, unit, target.settings)
    api = _api(target.of(number), check_key(key), timeout, Custody(host, unit.name, layout.user), certificate)
    look, is_ours = f"vllm-install logs --service {layout.service}", _watch_over(target, unit, host, report)
    return _subject(target.of(number), host.read(engine.path) or "", api, look, is_ours)


def _unit_of(number: int, layout: Layout, target: Target) -> Member:
    if not number:
        return handle(layout, target)
    for member in members(layout, target):
        if member.number == number:
            return member
    there = ", ".join(str(replica.number) for replica in target.replicas) or tr("none: it is one engine itself")
    raise UsageError(
        tr("{service} has no replica {number}", service=layout.service, number=number),
        tr("those that there are: {numbers}", numbers=there),
    )


def of_trial(trial: Trial, timeout: float) -> Subject:
    api = _api(trial.target, trial.key, timeout, trial.custody)
    return _subject(trial.target, trial.unit_text, api, look="", is_ours=None)


def check_key(text: str) -> str:
    """A key as it can travel in a header; its worth is for the service to judge."""
    key = text.strip()
    if not re.fullmatch(r"[!-~]{1,4096}", key):
        raise UsageError(tr("the key given is not one line of printable ASCII characters without spaces"))
    return key


def _api(target: Target, key: str, timeout: float, custody: Custody, certificate: str | None = None) -> Api:
    return Api(local_address(target.settings.host), target.settings.port, key, timeout, custody, certificate)


def _subject(target: Target, unit_text: str, api: Api, look: str, is_ours: Callable[[], str] | None) -> Subject:
    flags = vllm_flags.given(vllm_flags.split(exec_line(unit_text))[2])  # those that somebody wrote into it included
    return Subject(
        api=api,
        model=target.model.id,
        context=target.settings.max_model_len,
        look=look,
        no_tools="" if "--tool-call-parser" in flags else tr("no tool parser is set (--tool-call-parser)"),
        no_image=_why_no_image(target, flags),
        is_ours=is_ours,
    )


def _why_no_image(target: Target, flags: Mapping[str, str]) -> str:
    if "--language-model-only" in flags:
        return tr("images are switched off (--language-model-only)")
    return "" if target.profile.takes_images else tr("the model takes no images")


def _probe_key(host: Host, layout: Layout) -> str:
    """Empty where we may not read it."""
    try:
        return host.word(layout.probe_key)
    except PermissionError:
        return ""


def _watch_over(target: Target, unit: Member, host: Host, report: Report) -> Callable[[], str]:
    """A check that the unit runs, waiting for one that starts, and that it is the one behind the port.

    A start is followed in systemd's words: a question would wait among the callers, for as long as they do.
    """
    layout, settings = unit.layout, target.of(unit.number).settings

    def check() -> str:
        _check_runs(unit, host, report)
        if target.replicas and not unit.number:
            _check_some_run(members(layout, target), host, report)
        custody, address = Custody(host, unit.name, layout.user), local_address(settings.host)
        stranger = custody.stranger(address, settings.port)
        if stranger and stranger.pid:
            held = tr("port {port} is held by {holder}", port=settings.port, holder=stranger)
            raise Failed(held, stranger.how_to_stop)
        if why := custody.objection(address, settings.port):
            raise Failed(why, f"systemctl status {unit.stem}")
        return tr("{unit} on port {port}", unit=unit.name, port=settings.port)

    return check


def _check_runs(unit: Member, host: Host, report: Report) -> None:
    state = unit_properties(host, unit.name, "ActiveState").get("ActiveState", "unknown")
    if state == "activating" or (state in ("active", "reloading") and holding(host, unit)):
        try:
            prove.wait_until_ready(unit, host, report)
        except InstallError as error:
            raise Failed(error.message, error.hint) from None
    elif state == "failed":
        failure = prove.failure(unit, host, tr("{unit} has failed", unit=unit.name), invocation(host, unit.name))
        raise Failed(failure.message, failure.hint)
    elif state not in ("active", "reloading"):
        raise Failed(
            tr("{unit} does not run ({state})", unit=unit.name, state=state), f"sudo systemctl start {unit.stem}"
        )


def _check_some_run(replicas: Sequence[Member], host: Host, report: Report) -> None:
    """One that serves is enough; else the first is waited for that comes up."""
    if any(_serves(replica, host) for replica in replicas):
        return
    failed: Failed | None = None
    for replica in replicas:
        try:
            _check_runs(replica, host, report)
        except Failed as error:
            failed = failed or error
        else:
            return
    assert failed is not None, "there is a replica"
    raise failed


def _serves(unit: Member, host: Host) -> bool:
    state = unit_properties(host, unit.name, "ActiveState").get("ActiveState")
    return state in ("active", "reloading") and not holding(host, unit)
