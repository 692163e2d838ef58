"""A model by what the host can hold: the one that `--model auto` stands for, and the one that would fit instead."""

from __future__ import annotations

import dataclasses

from installer.base.errors import Refused
from installer.base.language import tr
from installer.base.report import Report
from installer.memory import recommend
from installer.memory.recommend import Fit
from installer.spec.facts import Facts
from installer.spec.settings import FIELDS, Settings
from installer.spec.values import AUTO_MODEL

# Whose models the hub gives only to who has agreed to their terms: nobody's choice but the user's.
GATED = ("meta-llama/", "google/")


def with_model(settings: Settings, facts: Facts, report: Report) -> Settings:
    """The best model in the place of `auto`; what is written down is its name, so that a later deploy keeps it."""
    if settings.model != AUTO_MODEL:
        return settings
    chose_context = settings.max_model_len != FIELDS["max_model_len"].default
    found = best(settings, facts, settings.max_model_len if chose_context else None)
    if found is None:
        raise Refused(
            tr("none of the models that are known fits this host"),
            tr("vllm-install models recommend shows them with what they need; or name one with --model"),
        )
    report.note(
        tr(
            "model: {model}, the largest that fits, with a context of {tokens}",
            model=found.model.id,
            tokens=found.context,
        )
    )
    shared = max(found.gpus, settings.tensor_parallel_size)
    return dataclasses.replace(settings, model=found.model.id, max_model_len=found.context, tensor_parallel_size=shared)


def best(settings: Settings, facts: Facts, context: int | None = None) -> Fit | None:
    fits = recommend.recommend(recommend.hardware_of(facts, settings), facts, context)
    return next((fit for fit in fits if fit.runs and not fit.model.id.startswith(GATED)), None)


def instead(settings: Settings, facts: Facts) -> str:
    """What to type where the model asked for fits with no context at all."""
    found = best(settings, facts)
    if found is None:
        return tr("take a smaller model, or give the service more memory; nothing was changed")
    return tr("nothing was changed; the largest that fits: {command}", command=found.command())
