"""The built-in model: real files, the same everywhere, made in one step."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import pytest

from installer.base.host import Host
from installer.base.report import Report
from installer.model import builtin
from installer.model.checkpoint import check_access, check_directory

PATH = Path("/var/cache/vllm-install/builtin/tiny")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    tmp_path.chmod(0o755)
    return Host(root=tmp_path)


@pytest.fixture
def made(host: Host) -> Path:
    builtin.MakeBuiltin(PATH).apply(host, Report())
    return host.at(PATH)


def test_it_is_a_complete_checkpoint_that_others_may_read(host: Host, made: Path) -> None:
    assert check_directory(made) == []
    assert check_access(PATH, host) == []


def test_it_is_the_same_everywhere() -> None:
    weights = builtin.files()["model.safetensors"]
    assert hashlib.sha256(weights).hexdigest() == "5441bbfc77a25fb256840bce17a602d5fbd3fbe027cdc0245b481f331f4c8ca0"


def test_the_weights_have_the_shapes_that_the_config_promises() -> None:
    config = json.loads(builtin.files()["config.json"])
    weights = builtin.files()["model.safetensors"]
    (length,) = struct.unpack("<Q", weights[:8])
    shapes = {name: t["shape"] for name, t in json.loads(weights[8 : 8 + length]).items() if name != "__metadata__"}
    hidden, heads = config["hidden_size"], config["num_attention_heads"] * config["head_dim"]
    assert shapes["model.embed_tokens.weight"] == [config["vocab_size"], hidden]
    assert shapes["lm_head.weight"] == [config["vocab_size"], hidden]
    assert shapes["model.layers.1.self_attn.q_proj.weight"] == [heads, hidden]
    assert shapes["model.layers.1.mlp.down_proj.weight"] == [hidden, config["intermediate_size"]]
    assert config["max_position_embeddings"] >= 2048


def test_every_id_has_a_token() -> None:
    tokenizer = json.loads(builtin.files()["tokenizer.json"])
    ids = {*tokenizer["model"]["vocab"].values(), *(token["id"] for token in tokenizer["added_tokens"])}
    assert ids == set(range(builtin.VOCABULARY))
    assert tokenizer["model"]["vocab"]["A"] == ord("A")
    assert tokenizer["model"]["vocab"]["Ġ"] == ord(" ")
    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    assert (special["<|im_end|>"], special["<|endoftext|>"]) == (builtin.IM_END, builtin.END_OF_TEXT)


def test_an_answer_can_end(made: Path) -> None:
    assert builtin.IM_END in json.loads((made / "generation_config.json").read_text())["eos_token_id"]


def test_a_half_made_or_altered_directory_is_made_anew(host: Host, made: Path) -> None:
    assert builtin.is_current(made)
    with (made / builtin.WEIGHTS).open("ab") as weights:
        weights.write(b" ")
    assert not builtin.is_current(made)
    builtin.MakeBuiltin(PATH).apply(host, Report())
    assert builtin.is_current(made)
    (made / "config.json").write_text("{}")
    assert not builtin.is_current(made)
    (made / "config.json").unlink()
    assert not builtin.is_current(made)
    builtin.MakeBuiltin(PATH).apply(host, Report())
    assert builtin.is_current(made)
    assert [path.name for path in made.parent.iterdir()] == ["tiny"]


def test_the_change_says_what_it_does() -> None:
    change = builtin.MakeBuiltin(PATH)
    size = sum(map(len, builtin.files().values()))
    assert change.to_json() == {"kind": "make", "model": "builtin:tiny", "path": str(PATH), "bytes": size}
    assert str(PATH) in change.describe()
