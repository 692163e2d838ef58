"""LORA: what is taken for an adapter, where it comes from, and what vLLM is started with."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from installer.airgap.bundle_file import open_bundle
from installer.base.errors import InstallError
from installer.base.host import Host
from installer.base.layout import Layout
from installer.base.report import Report
from installer.families.sglang.serve import check_words
from installer.families.vllm.serve import serve_arguments
from installer.flow import adapters, steps
from installer.flow.adapters import check_is_model
from installer.flow.request import Request
from installer.model.model_about import read_directory
from installer.runtime import vllm_flags
from installer.spec.settings import FIELDS, Settings
from installer.spec.state import State
from installer.spec.target import Adapter
from installer.units.render import unit
from installer.weights import inventory
from tests.airgap.test_bundle_file import CONTENTS
from tests.airgap.test_bundle_file import write as write_bundle
from tests.kit import adapter
from tests.kit.hub import Hub
from tests.kit.targets import target, wanted
from tests.kit.weights import checkpoint

LAYOUT = Layout("llm")
PLACE = Path("/srv/adapter")
REPO = "Org/Adapter"


def chosen(lora: str, **what: object) -> Settings:
    return dataclasses.replace(Settings("llm", model="builtin:tiny"), lora=FIELDS["lora"].parse(lora), **what)


def found(settings: Settings, host: Host, state: State | None = None, **more: Any) -> tuple[Adapter, ...]:
    request = Request("deploy", settings, **more)
    return adapters.resolve(request, settings, state or State("llm"), host, Report())


def test_an_adapter_in_a_directory_is_served_from_there_with_room_for_the_largest_rank(host: Host) -> None:
    adapter.write(host.at(PLACE), rank=12)
    adapter.write(host.at(Path("/srv/other")), rank=4, rank_pattern={"o_proj": 33})
    settings = chosen(f"a={PLACE},b:1=/srv/other")
    words = serve_arguments(dataclasses.replace(target(settings, kind="cpu"), adapters=found(settings, host)))
    said = vllm_flags.given(words[2:])
    assert "--enable-lora" in said
    assert said["--max-lora-rank"] == "64"
    start = words.index("--lora-modules")
    assert words[start + 1 : start + 3] == [f"a={PLACE}", "b:1=/srv/other"]


def test_a_hub_s_adapter_is_fetched_verified_and_stays_at_its_commit(server: Hub, host: Host) -> None:
    commit = server.add(REPO, adapter.files() | {"README.md": b"#", "optimizer.pt": b"x", "adapter_model.bin": b"x"})
    settings = chosen(f"a={REPO}", hf_endpoint=server.url)
    (one,) = found(settings, host)
    assert (one.rank, one.model.commit, one.model.id) == (adapter.RANK, commit, "a")
    made = dataclasses.replace(wanted(settings, kind="cpu"), target=target(settings, kind="cpu"))
    made = dataclasses.replace(made, target=dataclasses.replace(made.target, adapters=(one,)))
    *_, download = steps.weights(made, host)
    download.apply(host, Report())
    assert sorted(path.name for path in host.children(one.model.path)) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert [change for change in steps.weights(made, host) if change.to_json()["kind"] == "download"] == []
    host.at(one.model.path / "adapter_model.safetensors").resolve().write_bytes(b"x" * 99)
    assert [change.to_json()["kind"] for change in steps.weights(made, host)][-1] == "download", "it is fetched anew"

    server.add(REPO, adapter.files(rank=8))
    before = State("llm", proved=made.target)
    (again,) = found(settings, host, before)
    assert again.model.commit == commit
    (other,) = found(chosen(f"a={REPO}@main", hf_endpoint=server.url), host, before)
    assert (other.rank, other.model.commit == commit) == (8, False), "who names another revision gets that"
    (newer,) = found(settings, host, before, new_commit=True)
    assert (newer.rank, newer.model.commit == commit) == (8, False)
    (pinned,) = found(chosen(f"a={REPO}@{commit}", hf_endpoint=server.url), host)
    assert pinned.model.commit == commit


def test_an_adapter_of_a_bundle_comes_from_there_and_no_hub_is_asked(host: Host, tmp_path: Path) -> None:
    bundle = open_bundle(write_bundle(tmp_path / "b", bundle_with(adapter.files(rank=8)), adapters=("sql",)))
    settings = chosen("sql=Org/sql", offline=True)
    (one,) = found(settings, host, bundle=bundle)
    assert (one.rank, one.model.id, one.model.repo) == (8, "sql", "Org/sql")
    made = dataclasses.replace(wanted(settings, kind="cpu"), target=target(settings, kind="cpu"), bundle=bundle)
    made = dataclasses.replace(made, target=dataclasses.replace(made.target, adapters=(one,)))
    *_, brought = steps.weights(made, host)
    assert brought.to_json()["kind"] == "import"
    brought.apply(host, Report())
    assert host.at(one.model.path / "adapter_config.json").read_bytes() == adapter.files(rank=8)["adapter_config.json"]

    other = open_bundle(write_bundle(tmp_path / "c", bundle_with(checkpoint()), adapters=("sql",)))
    with pytest.raises(InstallError, match="Org/sql is no LoRA adapter"):
        found(settings, host, bundle=other)


def bundle_with(files: dict[str, bytes]) -> dict[str, bytes]:
    return CONTENTS | {f"adapters/0/{name}": content for name, content in files.items()}


def test_a_model_is_no_adapter_and_an_adapter_no_model(server: Hub, host: Host) -> None:
    server.add("Org/Tiny", checkpoint())
    with pytest.raises(InstallError, match="Org/Tiny is no LoRA adapter"):
        found(chosen("a=Org/Tiny", hf_endpoint=server.url), host)
    adapter.write(host.at(PLACE))
    (one,) = found(chosen(f"a={PLACE}"), host)
    with pytest.raises(InstallError, match="a is a LoRA adapter") as refused:
        check_is_model(read_directory(host.at(PLACE)), one.model)
    assert f"--lora NAME={PLACE}" in refused.value.hint


@pytest.mark.parametrize(
    "said", [{"r": 513}, {"r": True}, {"r": "8"}, {"r": 0}, {"rank_pattern": [1]}, {"rank_pattern": {"a": -1}}]
)
def test_a_rank_that_vllm_has_no_room_for_is_refused(host: Host, said: dict[str, object]) -> None:
    adapter.write(host.at(PLACE), **{"rank": 4, **said})  # type: ignore[arg-type]
    with pytest.raises(InstallError, match="names a rank of"):
        found(chosen(f"a={PLACE}"), host)


def test_the_largest_rank_that_vllm_has_room_for_is_taken(host: Host) -> None:
    adapter.write(host.at(PLACE), rank=512)
    (one,) = found(chosen(f"a={PLACE}"), host)
    assert one.rank == 512


def test_a_directory_that_is_not_there_is_named_as_an_adapter_s(host: Host) -> None:
    with pytest.raises(InstallError, match="LORA=sql: there is no directory /srv/none") as refused:
        found(chosen("sql=/srv/none"), host)
    assert "--model" not in refused.value.hint


def test_pickles_a_damaged_file_and_a_directory_that_is_closed_are_refused(host: Host) -> None:
    adapter.write(host.at(PLACE))
    weights = host.at(PLACE / "adapter_model.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    with pytest.raises(InstallError, match="is damaged"):
        found(chosen(f"a={PLACE}"), host)
    weights.write_bytes(whole)
    weights.chmod(0o600)
    with pytest.raises(InstallError, match="may not read"):
        found(chosen(f"a={PLACE}"), host)
    weights.rename(weights.with_name("adapter_model.bin"))
    with pytest.raises(InstallError, match="is no LoRA adapter"):
        found(chosen(f"a={PLACE}"), host)


def test_the_model_s_own_name_is_no_adapter_s(host: Host) -> None:
    with pytest.raises(InstallError, match="served under that name"):
        found(chosen("builtin:tiny=/srv/x"), host)
    with pytest.raises(InstallError, match="served under that name"):
        found(chosen("x=/srv/x", served_model_name=("tiny", "x")), host)


def test_sglang_is_not_given_what_its_clients_could_not_ask_for() -> None:
    with pytest.raises(InstallError, match="not translated for SGLang"):
        check_words(chosen("x=/srv/x", engine_family="sglang", served_model_name=("tiny",)), print)


def test_an_adapter_in_a_home_is_bound_into_the_sandbox_read_only() -> None:
    made = target(chosen("a=/srv/a"), kind="cpu")
    (one,) = made.adapters
    there = dataclasses.replace(one, model=dataclasses.replace(one.model, path=Path("/home/ana/my adapter")))
    text = unit(dataclasses.replace(made, adapters=(there,)), LAYOUT)
    assert 'BindReadOnlyPaths="/home/ana/my adapter"' in text
    assert "ProtectHome=tmpfs" in text
    assert "BindReadOnlyPaths=" not in unit(made, LAYOUT)


def test_what_a_command_line_names_as_an_adapter_is_in_use() -> None:
    place = f"{LAYOUT.hub}/models--Org--Adapter/snapshots/{'0' * 40}"
    assert inventory._served(["vllm", "serve", "/m", "--lora-modules", f"a={place}"]) == [Path("/m"), Path(place)]
