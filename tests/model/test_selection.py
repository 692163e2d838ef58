"""Which files of a repository are fetched."""

from __future__ import annotations

import pytest

from installer.base.errors import Refused
from installer.base.host import Host
from installer.model.selection import select
from installer.spec.model import ModelError, ModelFile
from installer.weights.models import resolve
from tests.kit.hub import Hub
from tests.kit.weights import LAYOUT, REPO, checkpoint, settings


def listed(*names: str) -> list[ModelFile]:
    return [ModelFile(name, 1, "0" * 40) for name in names]


@pytest.mark.parametrize(
    ("names", "dropped"),
    [
        (["model.safetensors", "pytorch_model.bin", "tf_model.h5", "x.onnx", "model.gguf", "onnx/a.json"], 5),
        (["model.safetensors", "consolidated.safetensors", "consolidated.safetensors.index.json"], 2),
        (["model.safetensors", "original/params.json", "original/consolidated.00.pth", "img/logo.png", "LICENSE"], 4),
        (["model.safetensors", "optimizer.pt", "training_args.bin", "checkpoint-10/model.safetensors"], 3),
        (["model.safetensors", "1_Pooling/config.json", "2_Dense/model.safetensors", "chat_template.jinja"], 0),
        (["a-00001-of-00002.safetensors", "a-00002-of-00002.safetensors", "a.safetensors.index.json", ".x/y.json"], 1),
    ],
)
def test_only_files_that_the_engine_loads(names: list[str], dropped: int) -> None:
    base = ["config.json", "tokenizer.json"]
    chosen = {file.name for file in select(REPO, listed(*base, *names))}
    assert chosen == {*base, *names[: len(names) - dropped]} if dropped else {*base, *names}


def test_the_consolidated_form_where_it_is_the_only_whole_one() -> None:
    names = ["params.json", "consolidated.safetensors", "tekken.json"]
    assert {file.name for file in select(REPO, listed(*names))} == set(names)
    # The standard form without a tokenizer of its own is not whole.
    both = [*names, "config.json", "model-00001-of-00001.safetensors", "model.safetensors.index.json"]
    assert {file.name for file in select(REPO, listed(*both))} == {*names, "config.json"}


def test_of_an_adapter_nothing_but_the_adapter_is_taken() -> None:
    adapter = {"adapter_config.json", "adapter_model.safetensors"}
    besides = ["adapter_model.bin", "tokenizer.json", "README.md", "checkpoint-9/adapter_model.safetensors"]
    assert {file.name for file in select(REPO, listed(*adapter, *besides))} == adapter
    whole = {*adapter, "config.json", "tokenizer.json", "model.safetensors"}
    assert "model.safetensors" in {file.name for file in select(REPO, listed(*whole))}, "a model with one beside it"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["config.json", "pytorch_model.bin"], "pickles"),
        (["config.json", "README.md"], "no weights"),
        (["adapter_config.json", "adapter_model.safetensors", "more.safetensors"], "config.json"),
        (["config.json", "tokenizer.json", "model.safetensors", "x.json", "x.json/y.json"], "as a file and as a dir"),
        (["config.json", "tokenizer.json", "model.safetensors", "Config.json"], "not every file system tells apart"),
    ],
)
def test_what_cannot_be_served_is_refused_before_the_download(names: list[str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        select(REPO, listed(*names))


def test_gguf_is_refused_with_what_would_work_instead() -> None:
    with pytest.raises(Refused, match="vllm-gguf-plugin") as refused:
        select(REPO, listed("config.json", "model-Q4_K_M.gguf"))
    assert "AWQ" in refused.value.hint


@pytest.mark.parametrize(
    "name", ["../../etc/x", "/etc/x", "a/../b", "a//b", "a\0b", "a\\b", "./x", "", "a/", "x\n", "b" * 256]
)
def test_a_hostile_file_name_is_refused(server: Hub, host: Host, name: str) -> None:
    server.add(REPO, checkpoint() | {name: b"x"})
    with pytest.raises(ModelError, match="dangerous name"):
        resolve(settings(server), host, LAYOUT)
