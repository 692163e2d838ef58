"""Whether the context asked for can fit this host, said before anything is touched."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from installer.base.errors import Refused
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import Layout
from installer.base.report import Report, size
from installer.checks.placement import usable_gpus
from installer.families.known import family_of
from installer.flow import advice
from installer.memory import capacity
from installer.memory.capacity import Estimate, Outlook
from installer.memory.device import Device
from installer.memory.shape import Shape, read_shape, shape_of
from installer.model.checkpoint import check_directory
from installer.model.model_about import About
from installer.spec.calibration import Calibration
from installer.spec.facts import Facts
from installer.spec.model import Model
from installer.spec.settings import FIELDS
from installer.spec.state import State
from installer.spec.target import Target
from installer.units.graph import members
from installer.units.journal import invocation, journal

JOURNAL_LINES = 4000


def check_context(
    target: Target, facts: Facts, state: State, host: Host, report: Report, about: About | None = None
) -> None:
    """Refuse only what cannot fit, before its weights are fetched; where it is close, say so with the numbers."""
    if not family_of(target.settings).predicts_memory:
        _check_weights(target, facts, host, report, about)
        return
    found = estimate(target, facts, state, host, about)
    asked = target.settings.max_model_len
    if found is None or asked is None:
        return
    if target.adapters and not found.calibrated:
        report.note(tr("what LORA's adapters take of the memory is not known: figures are of the model alone"))
    verdict = capacity.judge(found, asked)
    if verdict.answer is Outlook.CANNOT:
        most = min(verdict.largest, verdict.limit)
        raise Refused(
            tr("a context of {asked} does not fit: {reason}", asked=asked, reason=verdict.reason),
            tr("ask for {most} at most; nothing was changed", most=most)
            if most
            else advice.instead(target.settings, facts),
        )
    if verdict.answer is Outlook.CLOSE:
        report.warn(
            tr("it will be close: {reason}; if vLLM refuses, everything goes back as it was", reason=verdict.reason)
        )


def _check_weights(target: Target, facts: Facts, host: Host, report: Report, about: About | None) -> None:
    """Of a family whose cache nobody here reckons, this much is certain: its share is to hold weights and cache."""
    family, settings = family_of(target.settings), target.settings
    plain = dataclasses.replace(target, settings=dataclasses.replace(settings, vllm_args=()))  # they mean nothing to it
    device, shape = _device(target, facts), _shape(plain, host, about)
    if device is None or shape is None or not family.keeps_weights(settings):
        return
    most = round(device.memory * (device.share or 1))  # without a share it takes one of its own
    weights = shape.weights // shape.gpus
    if weights < most:
        report.note(
            tr(
                "{engine} has {most} at most for {weights} of weights and its cache; which context fits is not known",
                engine=family.title, most=size(most), weights=size(weights),
            )
        )  # fmt: skip
        return
    least = math.ceil(100 * weights / device.memory + 1) / 100
    raise Refused(
        tr("the weights alone take {weights}, and {engine} would have {most}", weights=size(weights),
           engine=family.title, most=size(most)),
        tr("choose --gpu-memory-utilization {least:g} or more; nothing was changed", least=least)
        if least < 1
        else tr("take a smaller model, or give the service more memory; nothing was changed"),
    )  # fmt: skip


def estimate(target: Target, facts: Facts, state: State, host: Host, about: About | None = None) -> Estimate | None:
    """None where the model's layers are not known, or the GPU does not say how much memory it has."""
    if not family_of(target.settings).predicts_memory:
        return None
    device, shape = _device(target, facts), _shape(target, host, about)
    if device is None or shape is None:
        return None
    found = capacity.estimate(shape, device, target.settings, _calibration(target, state))
    return found if found.cache.groups else None


def _shape(target: Target, host: Host, about: About | None) -> Shape | None:
    path = host.at(target.model.path)
    if not check_directory(path):
        return read_shape(path, target.settings)
    if about is not None and "architectures" in about.config:
        return shape_of(about.config, _listed(target.model), target.settings, about.processor)
    return None


def _listed(model: Model) -> int:
    """Bytes of weights that are not here yet: of those listed, vLLM may leave out some, such as a tied head."""
    return sum(file.size for file in model.files if file.name.endswith(".safetensors")) * 19 // 20


def measured(target: Target, layout: Layout, host: Host) -> Calibration | None:
    """What vLLM reported at the start that was just proved."""
    unit = members(layout, target)[0].name
    return family_of(target.settings).log.report(journal(host, unit, JOURNAL_LINES, invocation(host, unit)))


def _calibration(target: Target, state: State) -> Calibration | None:
    """The last start's report, if that start differed in its context and share of the memory at most."""
    before = state.proved
    if before is None or state.calibration is None or _rest(before) != _rest(target):
        return None
    # What an earlier version deployed does not say where it ran: on a GPU that it would choose again.
    same = not before.gpus or [gpu.name for gpu in before.gpus] == [gpu.name for gpu in target.gpus]
    return state.calibration if same else None


def _rest(target: Target) -> tuple[object, ...]:
    same: dict[str, Any] = {name: about.default for name, about in FIELDS.items() if not about.memory}
    settings = dataclasses.replace(target.settings, **same)
    return (settings, target.engine.id, target.model.path)


def _device(target: Target, facts: Facts) -> Device | None:
    kind = target.engine.kind
    share = family_of(target.settings).memory_share(target.settings, kind)
    if kind == "cpu":
        return Device(kind, facts.node_memory, share)
    gpus = usable_gpus(facts, kind)[: target.settings.tensor_parallel_size]
    smallest = min(gpus, key=lambda gpu: gpu.memory_total, default=None)
    if smallest is None or not smallest.memory_total:
        return None
    return Device(kind, smallest.memory_total, share, smallest.name, smallest.is_unified)
