"""LORA: each adapter found, pinned and looked at as a model is, before anything is started with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from installer.airgap import bundled
from installer.airgap.bundle_file import Bundle
from installer.base.errors import UsageError
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import Layout
from installer.base.report import Report
from installer.flow.local import check_local
from installer.flow.request import Request
from installer.model.model_about import About
from installer.model.selection import ADAPTER, ADAPTER_WEIGHTS, is_adapter
from installer.runtime.vllm_text import one_line
from installer.spec.model import Model, ModelError
from installer.spec.offer import Elsewhere
from installer.spec.settings import Settings
from installer.spec.state import State
from installer.spec.target import Adapter
from installer.weights import models
from installer.weights.about import of_model

LARGEST_RANK = 512  # that vLLM has room for


def resolve(request: Request, settings: Settings, state: State, host: Host, report: Report) -> tuple[Adapter, ...]:
    _check_names(settings)
    proved = () if request.new_commit or not state.proved else state.proved.adapters
    before = {each.model.id: each.model for each in proved}
    layout, bundle = Layout(settings.service), request.bundle
    return tuple(
        _carried(each, carrier, host, layout)
        if bundle and (carrier := bundle.of_adapter(each.model_id))
        else _adapter(each, before.get(each.model_id), request.caches, host, layout, report)
        for each in map(settings.of_adapter, settings.lora)
    )


def check_is_model(about: About, model: Model) -> None:
    if is_adapter(about.names):
        raise ModelError(
            tr("{model} is a LoRA adapter, which is served beside a model", model=model.id),
            tr(
                "name the model with --model, and the adapter with --lora NAME={source}",
                source=model.repo or model.path,
            ),
        )


def _check_names(settings: Settings) -> None:
    names = {settings.model_id, *settings.served_model_name}
    taken = [name for given in settings.lora if (name := given.partition("=")[0]) in names]
    if taken:
        raise UsageError(
            tr("LORA={name}: the model itself is served under that name", name=taken[0]),
            tr("give the adapter another one: clients ask for it by that"),
        )


def _carried(wanted: Settings, bundle: Bundle, host: Host, layout: Layout) -> Adapter:
    return _checked(bundled.model(bundle, wanted, host, layout), bundled.about(bundle), wanted, host)


def _adapter(
    wanted: Settings, known: Model | None, caches: Sequence[Elsewhere], host: Host, layout: Layout, report: Report
) -> Adapter:
    """Once resolved it stays at its commit, as a model does."""
    same = known and (known.repo, known.revision) == (wanted.model, wanted.revision)
    commit = known.commit if known and same else None
    if wanted.model.startswith("/") and not host.exists(Path(wanted.model)):
        raise ModelError(
            tr("LORA={name}: there is no directory {path}", name=wanted.model_id, path=wanted.model),
            tr("name the directory that PEFT's save_pretrained wrote, by its full path; nothing was changed"),
        )
    model = models.resolve(wanted, host, layout, commit, report, caches)
    return _checked(model, of_model(model, host, wanted, report, caches), wanted, host)


def _checked(model: Model, about: About | None, wanted: Settings, host: Host) -> Adapter:
    if about is None or not is_adapter(about.names):
        raise ModelError(
            tr(
                "{source} is no LoRA adapter: it has no {config} with {weights}",
                source=wanted.model, config=ADAPTER, weights=ADAPTER_WEIGHTS,
            ),
            tr("PEFT's save_pretrained writes both; nothing was changed"),
        )  # fmt: skip
    check_local(model, wanted, host)
    return Adapter(replace(model, id=wanted.model_id), _rank(about.adapter, wanted.model))


def _rank(said: Mapping[str, object], source: str) -> int:
    """The largest of its layers, for which vLLM has to make room."""
    pattern = said.get("rank_pattern") or {}
    ranks = [said.get("r"), *(pattern.values() if isinstance(pattern, dict) else (pattern,))]
    if found := [rank for rank in ranks if type(rank) is not int or not 1 <= rank <= LARGEST_RANK]:
        raise ModelError(
            tr(
                "{config} of {source} names a rank of {rank}, where vLLM takes 1 to {most}",
                config=ADAPTER, source=source, rank=one_line(str(found[0]), 40), most=LARGEST_RANK,
            ),
            tr("take another version of the adapter; nothing was changed"),
        )  # fmt: skip
    return max(rank for rank in ranks if type(rank) is int)
