"""What one host says to another of a model that it has: all that is needed, and nothing that is too long."""

from __future__ import annotations

import dataclasses

import pytest

from installer.spec import offer
from installer.spec.model import ModelFile
from installer.spec.offer import Need, offer_of, packed, unpacked
from tests.kit.targets import COMMIT

TEXTS = {"config.json": '{"a": "é"}', "tokenizer_config.json": "{}"}


def test_what_a_host_has_is_offered_with_all_that_is_known_of_it() -> None:
    need = Need("Org/Tiny", "main", "hub", COMMIT, (ModelFile("config.json", 1, "d"),), 7, True, True, packed(TEXTS))
    made = offer_of(need, "gpu1")
    assert made.host == "gpu1"
    said = {field.name: getattr(made, field.name) for field in dataclasses.fields(made) if field.name != "host"}
    assert said == {name: getattr(need, name) for name in said}


def test_small_files_are_packed_and_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    text = packed(TEXTS)
    assert text.isascii()
    assert unpacked(text) == TEXTS
    monkeypatch.setattr(offer, "MOST_PACKED", len(text))
    assert packed(TEXTS) == text
    monkeypatch.setattr(offer, "MOST_PACKED", len(text) - 1)
    assert packed(TEXTS) == "", "then a hub is asked"
