"""What would run code that came with a model is refused, unless it is allowed for that model by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from installer.base.host import Host
from installer.base.report import Report
from installer.families.vllm.serve import serve_arguments
from installer.model import trust
from installer.model.checkpoint import check_directory
from installer.model.model_about import About, read_directory
from installer.model.selection import select
from installer.spec.model import ModelError
from installer.spec.settings import Settings
from installer.weights.models import resolve
from tests.kit.hub import Hub
from tests.kit.targets import target
from tests.kit.weights import LAYOUT, REPO, checkpoint, due, served, settings
from tests.model.test_selection import listed

BIN = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")


def pickled() -> dict[str, bytes]:
    kept = {name: content for name, content in checkpoint().items() if "safetensors" not in name}
    del kept["pytorch_model.bin"]
    index = {"weight_map": {"a": BIN[0], "b": BIN[1]}}
    extra = {
        "training_args.bin": b"x",
        "optimizer.pt": b"x",
        "pytorch_model.bin.index.json": json.dumps(index).encode(),
    }
    return kept | extra | dict.fromkeys(BIN, b"pickle")


def test_pickles_are_refused_before_a_byte_of_them_is_fetched(server: Hub, host: Host) -> None:
    server.add(REPO, pickled())
    with pytest.raises(ModelError, match="run any code") as caught:
        resolve(settings(server), host, LAYOUT)
    assert f"--allow-pickle {REPO}" in caught.value.hint
    with pytest.raises(ModelError, match="run any code"):
        resolve(settings(server, allow_pickle=("Org/Other",)), host, LAYOUT)
    assert server.sent == 0


def test_pickles_that_are_allowed_by_name_are_fetched_whole_and_nothing_else(server: Hub, host: Host) -> None:
    server.add(REPO, pickled())
    model = resolve(settings(server, allow_pickle=(REPO,)), host, LAYOUT)
    for change in due(model, host):
        change.apply(host, Report())
    names = set(served(host, model))
    assert {*BIN, "pytorch_model.bin.index.json", "config.json", "tokenizer.json"} <= names
    assert not {"training_args.bin", "optimizer.pt"} & names
    assert due(model, host) == []


def test_where_there_are_safetensors_no_pickle_is_fetched_even_if_allowed() -> None:
    names = ["config.json", "tokenizer.json", "model.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json"]
    chosen = {file.name for file in select(REPO, listed(*names), with_pickles=True)}
    assert chosen == {"config.json", "tokenizer.json", "model.safetensors"}


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["pytorch_model.bin", "model.pt"], {"pytorch_model.bin"}),
        (["model.pt", "training_args.bin"], {"model.pt"}),
        (["consolidated.00.pth"], None),
        (["x/pytorch_model.bin"], None),
    ],
)
def test_of_pickles_the_form_is_taken_that_vllm_looks_for_first(names: list[str], chosen: set[str] | None) -> None:
    base = ["config.json", "tokenizer.json"]
    if chosen is None:
        with pytest.raises(ModelError):
            select(REPO, listed(*base, *names), with_pickles=True)
    else:
        assert {file.name for file in select(REPO, listed(*base, *names), with_pickles=True)} == {*base, *chosen}


def test_a_directory_of_pickles(tmp_path: Path) -> None:
    for name, content in pickled().items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (found,) = check_directory(tmp_path)
    assert "run any code" in found
    assert check_directory(tmp_path, with_pickles=True) == []
    about = read_directory(tmp_path)
    assert [p.remedy.partition("--")[2] for p in trust.check_trust(about, Settings(model=str(tmp_path)))] == [
        f"allow-pickle {tmp_path} (ALLOW_PICKLE)"
    ]
    assert not list(trust.check_trust(about, Settings(model=str(tmp_path), allow_pickle=(str(tmp_path),))))
    (tmp_path / BIN[1]).unlink()
    assert f"{BIN[1]} is missing" in check_directory(tmp_path, with_pickles=True)[0]


def about(model_type: str, **files: str) -> About:
    return About({"model_type": model_type}, with_code={f"{name}.json": said for name, said in files.items()})


@pytest.mark.parametrize(
    ("found", "is_refused"),
    [
        (about("internvl_chat", config=""), True),
        (about("kimi_k2", config="", tokenizer_config="TikTokenTokenizer"), True),
        (about("", config=""), True),
        (about("internvl_chat"), False),
        # Code that transformers has had since is never run.
        (about("deepseek_v3", config="", tokenizer_config="LlamaTokenizerFast"), False),
        (about("phi3", config="", tokenizer_config="LlamaTokenizer"), False),
        # vLLM has the configuration, nobody has the tokenizer.
        (about("chatglm", config="", tokenizer_config="ChatGLMTokenizer"), True),
    ],
)
def test_code_of_the_repository_is_refused_where_nothing_takes_its_place(found: About, is_refused: bool) -> None:
    problems = list(trust.check_trust(found, Settings(model=REPO)))
    assert bool(problems) == is_refused
    for problem in problems:
        assert problem.fatal
        assert f"--trust-remote-code {REPO}" in problem.remedy
        assert not list(trust.check_trust(found, Settings(model=REPO, trust_remote_code=("x", REPO))))
        assert list(trust.check_trust(found, Settings(model=REPO, trust_remote_code=("x",))))


def test_the_files_that_name_code_are_found(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"auto_map": {"AutoConfig": "configuration_x.XConfig"}}')
    (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {"a": "b"}, "tokenizer_class": "XTokenizer"}')
    (tmp_path / "preprocessor_config.json").write_text('{"auto_map": {}}')
    assert read_directory(tmp_path).with_code == {"config.json": "None", "tokenizer_config.json": "XTokenizer"}


def test_the_flag_is_in_the_unit_of_that_model_only() -> None:
    allowed = Settings(model=REPO, trust_remote_code=(REPO, "Org/Other"))
    assert serve_arguments(target(allowed)).count("--trust-remote-code") == 1
    assert "--trust-remote-code" not in serve_arguments(target(Settings(model="Org/Third", trust_remote_code=(REPO,))))
