"""What a model says of itself before its weights are here: its small files alone are fetched, and judged."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from installer.base.errors import Refused
from installer.base.host import Host
from installer.base.layout import Layout
from installer.base.report import Report
from installer.flow import fit
from installer.flow.resolve import _known_profile, _profile
from installer.model import profiles
from installer.model.model_about import About
from installer.spec.facts import Gpu
from installer.spec.model import Model, ModelError, ModelFile
from installer.spec.settings import Settings
from installer.spec.state import State
from installer.spec.values import BUILTIN
from installer.weights import models
from installer.weights.about import of_model
from tests.checks.test_preflight import HEALTHY
from tests.kit.hub import Hub
from tests.kit.targets import QWEN3_VL, target
from tests.memory.test_capacity import CONFIGS

LAYOUT = Layout("qwen3vl")
TEMPLATE = '{% if tools %}{{ tools }}{% endif %}<tool_call>{"name": 1, "arguments": 2}</tool_call>'
CONFIG = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        yield server


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path / "root")


def files(config: dict[str, object]) -> dict[str, bytes]:
    return {
        "config.json": json.dumps(CONFIG | config).encode(),
        "chat_template.jinja": TEMPLATE.encode(),
        "tokenizer.json": b"{}",
        "model.safetensors": bytes(1024),
    }


def asked(hub: Hub, **changed: object) -> Settings:
    return dataclasses.replace(Settings(model="org/model", hf_endpoint=hub.url), **changed)  # type: ignore[arg-type]


def found(hub: Hub, host: Host, config: dict[str, object] | None = None) -> Model:
    hub.add("org/model", files(config or {}))
    return models.resolve(asked(hub), host, LAYOUT)


def test_of_a_model_on_the_hub_only_the_small_files_are_fetched(hub: Hub, host: Host) -> None:
    model = found(hub, host)
    hub.requests.clear()
    about = of_model(model, host, asked(hub), Report())
    assert profiles.of(about).tool_parser == "hermes"
    assert "model.safetensors" in about.names
    fetched = {request.path.rpartition("/")[2] for request in hub.requests}
    assert fetched == {"config.json", "chat_template.jinja"}
    assert not host.root.exists(), "looking changes nothing"


def test_a_small_file_with_wrong_bytes_is_an_error(hub: Hub, host: Host) -> None:
    model = found(hub, host)
    hub.fail("config.json", corrupt=True, times=None)
    with pytest.raises(ModelError):
        of_model(model, host, asked(hub), Report())


def test_of_a_model_on_disk_nothing_is_fetched(hub: Hub, host: Host) -> None:
    model = found(hub, host)
    for name, content in files({}).items():
        host.write(model.path / name, content.decode())
    hub.requests.clear()
    assert of_model(model, host, asked(hub), Report()).template == TEMPLATE
    assert hub.requests == []


def test_the_built_in_model_is_known_before_it_is_made_and_has_no_tools(host: Host) -> None:
    model = models.resolve(Settings(model=BUILTIN), host, LAYOUT)
    found = profiles.of(of_model(model, host, Settings(), Report()))
    assert (found.family, found.tool_parser, found.reasoning_parser) == ("Qwen3", None, None)


def test_parity_row_11_what_cannot_be_run_is_refused_before_a_weight_is_fetched(hub: Hub, host: Host) -> None:
    model = found(hub, host, {"quantization_config": {"quant_method": "bitsandbytes"}})
    about = of_model(model, host, asked(hub), Report())
    with pytest.raises(Refused, match="bitsandbytes"):
        _profile(asked(hub), model, "cuda", HEALTHY, about, Report())
    assert not any("safetensors" in request.path for request in hub.requests)


def test_what_was_proved_with_a_commit_stays_with_it() -> None:
    proved = target()
    state, settings = State("qwen3vl", proved=proved), proved.settings
    assert _known_profile(settings, proved.model, "cuda", state) == QWEN3_VL
    assert _known_profile(settings, dataclasses.replace(proved.model, path=Path("/other")), "cuda", state) is None
    for changed in (
        Settings(tool_call_parser="none"),
        Settings(reasoning_parser="qwen3"),
        Settings(vllm_version="0.33.0"),
        Settings(vllm_args=("--chat-template", "/srv/x")),
    ):
        assert _known_profile(changed, proved.model, "cuda", state) is None
    assert _known_profile(settings, proved.model, "rocm", state) is None
    assert _known_profile(settings, proved.model, "cuda", State("qwen3vl")) is None


def test_a_directory_of_ones_own_is_looked_at_every_time() -> None:
    local = target(path=Path("/srv/model"))
    assert _known_profile(local.settings, local.model, "cuda", State("qwen3vl", proved=local)) is None


@pytest.mark.parametrize(("memory", "fits"), [(48, False), (80, True)])
def test_a_model_too_large_for_the_gpu_is_refused_before_a_weight_is_fetched(
    host: Host, memory: int, fits: bool
) -> None:
    config = json.loads((CONFIGS / "qwen3-32b/config.json").read_text())
    weights = ModelFile("model.safetensors", 65524246528, "d")
    wanted = target(Settings(model="Qwen/Qwen3-32B", max_model_len=8192))
    wanted = dataclasses.replace(wanted, model=dataclasses.replace(wanted.model, files=(weights,)))
    gpu = Gpu("nvidia", "Some GPU", capability=(9, 0), memory_total=memory * 2**30)
    seen = dataclasses.replace(HEALTHY, gpus=(gpu,))
    about = About(config, names=frozenset(("config.json",)))
    if fits:
        fit.check_context(wanted, seen, State("qwen3vl"), host, Report(), about)
    else:
        with pytest.raises(Refused, match="8192 does not fit"):
            fit.check_context(wanted, seen, State("qwen3vl"), host, Report(), about)
    assert fit.estimate(wanted, seen, State("qwen3vl"), host) is None, "nothing is known of it without its files"


def test_how_large_images_may_be_is_known_before_the_weights_are_here(hub: Hub, host: Host) -> None:
    hub.add("org/model", files({}) | {"preprocessor_config.json": b'{"max_pixels": 5}'})
    model = models.resolve(asked(hub), host, LAYOUT)
    assert of_model(model, host, asked(hub), Report()).processor == {"max_pixels": 5}
