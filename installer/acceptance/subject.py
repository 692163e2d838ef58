"""What is to be tested: a running service or a throwaway server, as far as the tests have to know it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping

from installer.acceptance.apitest import Subject
from installer.acceptance.replies import Failed
from installer.acceptance.trial import Trial
from installer.base.errors import InstallError, Refused, UsageError
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import Layout
from installer.base.report import Report
from installer.flow import prove
from installer.look.client import KEY_VARIABLE
from installer.runtime import vllm_flags
from installer.spec.records import proved_target
from installer.spec.target import Target
from installer.units.api import Api, local_address
from installer.units.custody import Custody
from installer.units.graph import handle
from installer.units.holding import holding
from installer.units.journal import invocation
from installer.units.syntax import exec_line
from installer.units.systemd import unit_properties


def of_service(service: str, given_key: str | None, host: Host, report: Report, timeout: float) -> Subject:
    layout = Layout(service)
    target = proved_target(host, layout)
    key = given_key or _probe_key(host, layout) or os.environ.get(KEY_VARIABLE, "")
    if not key:
        raise Refused(
            tr("there is no key to test {service} with", service=service),
            tr(
                "run it as root, who may use the service's own probe key; or set {variable}, or give --key-file",
                variable=KEY_VARIABLE,
            ),
        )
    return _subject(
        target, host.read(layout.unit) or "", check_key(key), timeout, Custody(host, layout.unit_name, layout.user),
        look=f"vllm-install logs --service {service}", is_ours=_watch_over(target, layout, host, report),
    )  # fmt: skip


def of_trial(trial: Trial, timeout: float) -> Subject:
    return _subject(trial.target, trial.unit_text, trial.key, timeout, trial.custody, look="", is_ours=None)


def check_key(text: str) -> str:
    """A key as it can travel in a header; its worth is for the service to judge."""
    key = text.strip()
    if not re.fullmatch(r"[!-~]{1,4096}", key):
        raise UsageError(tr("the key given is not one line of printable ASCII characters without spaces"))
    return key


def _subject(
    target: Target,
    unit_text: str,
    key: str,
    timeout: float,
    custody: Custody,
    *,
    look: str,
    is_ours: Callable[[], str] | None,
) -> Subject:
    settings = target.settings
    flags = vllm_flags.given(vllm_flags.split(exec_line(unit_text))[2])  # those that somebody wrote into it included
    address = local_address(settings.host)
    api = Api(address, settings.port, key, timeout, custody)
    return Subject(
        api=api,
        model=target.model.id,
        context=settings.max_model_len,
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


def _watch_over(target: Target, layout: Layout, host: Host, report: Report) -> Callable[[], str]:
    """A check that the unit runs, waiting for one that starts, and that it is the one behind the port.

    A start is followed in systemd's words: a question would wait among the callers, for as long as they do.
    """
    settings, unit = target.settings, layout.unit_name

    def check() -> str:
        state = unit_properties(host, unit, "ActiveState").get("ActiveState", "unknown")
        if state == "activating" or (state in ("active", "reloading") and holding(host, layout)):
            try:
                prove.wait_until_ready(handle(layout), host, report)
            except InstallError as error:
                raise Failed(error.message, error.hint) from None
        elif state == "failed":
            failure = prove.failure(handle(layout), host, tr("{unit} has failed", unit=unit), invocation(host, unit))
            raise Failed(failure.message, failure.hint)
        elif state not in ("active", "reloading"):
            raise Failed(
                tr("{unit} does not run ({state})", unit=unit, state=state), f"sudo systemctl start {layout.service}"
            )
        custody, address = Custody(host, unit, layout.user), local_address(settings.host)
        stranger = custody.stranger(address, settings.port)
        if stranger and stranger.pid:
            held = tr("port {port} is held by {holder}", port=settings.port, holder=stranger)
            raise Failed(held, stranger.how_to_stop)
        if why := custody.objection(address, settings.port):
            raise Failed(why, f"systemctl status {layout.service}")
        return tr("{unit} on port {port}", unit=unit, port=settings.port)

    return check
