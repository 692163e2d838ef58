"""`--model auto`, and what is named where a model does not fit: the largest that does, by the table of models."""

from __future__ import annotations

import dataclasses

import pytest

from installer.base.errors import Refused
from installer.base.report import Report
from installer.flow import advice
from installer.memory.recommend import parse_hardware, recommend, with_gpus
from installer.spec.facts import Facts
from installer.spec.settings import Settings
from tests.checks.test_preflight import HEALTHY

AUTO = Settings(model="auto", engine="cuda")


def on(hardware: str) -> Facts:
    return with_gpus(HEALTHY, parse_hardware(hardware))


@pytest.mark.parametrize("hardware", ["8GiB", "24GiB", "80GiB", "2x48GiB", "8x141GiB"])
def test_auto_is_the_first_that_anybody_may_have_with_its_context_and_its_gpus(hardware: str) -> None:
    listed = recommend(parse_hardware(hardware), on(hardware))
    first = next(fit for fit in listed if fit.model.id.partition("/")[0] not in ("meta-llama", "google"))
    found = advice.with_model(AUTO, on(hardware), Report())
    assert (found.model, found.max_model_len, found.tensor_parallel_size) == (first.model.id, first.context, first.gpus)


def test_a_context_and_a_number_of_gpus_that_were_asked_for_stay() -> None:
    asked = dataclasses.replace(AUTO, max_model_len=8192, tensor_parallel_size=4)
    found = advice.with_model(asked, on("4x24GiB"), Report())
    assert (found.max_model_len, found.tensor_parallel_size) == (8192, 4)


def test_a_model_with_a_name_is_nobody_elses_choice() -> None:
    assert advice.with_model(Settings(), on("1GiB"), Report()) == Settings()


def test_where_nothing_fits_auto_is_refused() -> None:
    with pytest.raises(Refused, match="none of the models"):
        advice.with_model(AUTO, on("1GiB"), Report())


def test_what_fits_instead_is_named_with_the_command() -> None:
    hint = advice.instead(AUTO, on("24GiB"))
    assert recommend(parse_hardware("24GiB"), on("24GiB"))[0].command() in hint
    assert "take a smaller model" in advice.instead(AUTO, on("1GiB"))
