"""Which weights a host is to serve and what it has of them, said so that another host of its group can help."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from installer.base.host import Host
from installer.base.layout import Layout
from installer.base.report import Report
from installer.checks import facts
from installer.flow import advice
from installer.flow.request import Request
from installer.flow.resolve import known_commit
from installer.spec.model import PROVIDERS, Model, ModelError
from installer.spec.offer import Need, packed
from installer.spec.records import load_state
from installer.spec.settings import Settings
from installer.spec.state import State
from installer.spec.values import AUTO_MODEL
from installer.weights import cache, handover, models, sources
from installer.weights.about import texts_of
from installer.weights.wanted import as_on_disk, files_of, is_present


def of(request: Request, host: Host, report: Report) -> Iterator[Need]:
    """Of each model that comes from a hub; what lies in a directory of the user's own is his to bring."""
    layout = Layout(request.settings.service)
    state, chosen = load_state(host, layout) or State(layout.service), request.settings
    if chosen.model == AUTO_MODEL:
        chosen = advice.with_model(chosen, facts.gather(host, chosen, layout), report)
    for settings in (chosen, *map(chosen.of_adapter, chosen.lora)):
        if settings.model.startswith("/") or (need := _need(request, settings, state, host, report)) is None:
            continue
        yield need


def held(settings: Settings, host: Host) -> Need | None:
    """Of a host that is not to serve it, and asks nobody."""
    request = Request("plan", replace(settings, offline=True))
    need = _need(request, request.settings, State(settings.service), host, Report())
    return need if need and need.gives else None


def _need(request: Request, settings: Settings, state: State, host: Host, report: Report) -> Need | None:
    commit = None if request.new_commit else known_commit(settings, state)
    origin = sources.origins(settings)[0]
    try:
        model = models.resolve(settings, host, Layout(settings.service), commit, report, request.caches)
    except ModelError:
        is_ours = handover.of_others(handover.HUB / origin.folder, host) is None
        return Need(settings.model, settings.revision, origin.provider, takes=is_ours)
    if model.source not in PROVIDERS or model.source != origin.provider:
        return None
    return _of_model(model, settings, host, report)


def _of_model(model: Model, settings: Settings, host: Host, report: Report) -> Need:
    model = as_on_disk(replace(model, files=files_of(model, host)), host)
    is_whole = is_present(model, host) and not cache.unchecked(model.folder, model.files, host)
    is_ours = handover.of_others(model.folder, host) is None
    try:
        texts = packed(texts_of(model, host, settings, report))
    except ModelError:
        texts = ""
    return Need(
        model.repo, model.revision, model.source, model.commit or "", model.files,
        model.bytes_missing, is_whole and is_ours, is_ours, texts,
    )  # fmt: skip
