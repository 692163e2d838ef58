"""models verify: what is wrong with weights is named, and --repair fetches that and nothing else."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from installer.base.host import Host
from installer.base.report import Report
from installer.model import builtin
from installer.model.summary import describe
from installer.spec.model import Model, ModelError
from installer.spec.settings import Settings
from installer.weights import checksums, inventory
from installer.weights import verify as check
from installer.weights.verify import Verified
from tests.kit.hub import Hub
from tests.kit.weights import REPO, SHARD, WANTED, checkpoint, pull, served, settings, weights
from tests.weights.test_integrity import INJURIES, blob, flip, model

__all__ = ["model"]


def verified(host: Host, name: str | None = REPO) -> Verified:
    (found,) = [
        check.verify(target, settings(model=name), host, Report())
        for target in check.targets(name, settings(model=name), host)
    ]
    return found


def test_a_whole_model_is_right_and_described(host: Host, model: Model) -> None:
    found = verified(host)
    assert found.is_right, found
    assert (found.model, found.commit, found.checked) == (REPO, model.commit, len(WANTED))
    assert found.bytes == sum(len(checkpoint()[name]) for name in WANTED)
    summary = found.summary
    assert (summary.model_type, summary.vocab_size, summary.dtype) == ("qwen3", 320, "bfloat16")
    assert (summary.parameters, summary.shards, summary.tensors) == (600_000, 2, 4)
    assert (summary.tokenizer, summary.chat_template, summary.quantization) == ("tokenizer.json", True, None)
    assert describe(summary)[2].startswith("Qwen3: no tool calls")
    json.dumps(found.to_json())


@pytest.mark.parametrize("injure", INJURIES, ids=lambda injure: injure.__name__)
def test_every_injury_is_named_and_repaired_by_fetching_that_file_alone(
    server: Hub, host: Host, model: Model, injure: object
) -> None:
    assert callable(injure)
    injure(blob(host, model))
    found = verified(host)
    assert (*found.wrong, *found.missing) == (SHARD,)
    asked, sent = len(server.requests), server.sent
    after = check.repair(found, settings(server), host, Report())
    assert after.is_right
    assert served(host, model) == {name: checkpoint()[name] for name in WANTED}
    whole = injure.__name__ in ("point_elsewhere", "drop_link")
    assert server.sent - sent == (0 if whole else len(checkpoint()[SHARD]))
    others = [r.path for r in server.requests[asked:] if SHARD not in r.path]
    assert others == []


def test_rot_below_the_file_system_is_found_although_no_time_stamp_tells(host: Host, model: Model) -> None:
    """A disk that returns other bytes than were written changes no time: only reading them all finds that."""
    path = blob(host, model)
    flip(path)
    notes = host.at(model.folder / "checked.json")
    seen = json.loads(notes.read_text())
    status = path.stat()
    seen[path.name] = f"{status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
    notes.write_text(json.dumps(seen))
    assert verified(host).wrong == (SHARD,)
    assert path.name not in json.loads(notes.read_text()), "the next deploy knows it too"


def test_equal_files_are_read_once_and_both_named(server: Hub, host: Host) -> None:
    same = weights(5, 200_000)
    second = SHARD.replace("00001-", "00002-")
    server.add(REPO, checkpoint() | {SHARD: same, second: same})
    flip(blob(host, pull(server, host)))
    assert verified(host).wrong == (SHARD, second)


@pytest.mark.parametrize("name", ["consolidated.safetensors", "evil.py", "pytorch_model.bin", "params.json"])
def test_a_file_that_somebody_put_beside_the_weights_is_named_and_taken_out(
    server: Hub, host: Host, model: Model, name: str
) -> None:
    (host.at(model.path) / name).write_bytes(weights(9, 10))
    found = verified(host)
    assert found.problems == (f"{name} does not belong to the model",)
    assert check.repair(found, settings(server), host, Report()).is_right
    assert not (host.at(model.path) / name).exists()


def test_offline_a_repair_is_refused_and_names_the_size(host: Host, model: Model) -> None:
    flip(blob(host, model))
    with pytest.raises(ModelError, match="offline"):
        check.repair(verified(host), settings(offline=True), host, Report())


def test_a_repair_asks_no_source_that_the_user_did_not_choose(server: Hub, host: Host, model: Model) -> None:
    flip(blob(host, model))
    asked = len(server.requests)
    chosen = replace(settings(server), model_sources=("modelscope+http://127.0.0.1:9",))
    with pytest.raises(ModelError, match="no source that you chose"):
        check.repair(verified(host), chosen, host, Report())
    assert len(server.requests) == asked


def test_of_several_commits_each_is_verified(server: Hub, host: Host, model: Model) -> None:
    newer = checkpoint() | {"config.json": builtin.files()["config.json"] + b" "}
    second = pull_new(server, host, newer)
    flip((host.at(second.path) / "config.json").resolve())
    results = [check.verify(target, settings(), host, Report()) for target in check.targets(REPO, settings(), host)]
    assert {found.commit: found.wrong for found in results} == {model.commit: (), second.commit: ("config.json",)}
    only = check.targets(REPO, settings(revision=second.commit), host)
    assert [getattr(target, "commit", None) for target in only] == [second.commit]


def pull_new(server: Hub, host: Host, files: dict[str, bytes]) -> Model:
    server.add(REPO, files)
    return pull(server, host)


def test_a_model_that_is_not_here_is_an_error_that_says_how_to_get_it(host: Host) -> None:
    with pytest.raises(ModelError, match="not in the cache") as caught:
        check.targets("Org/Other", settings(model="Org/Other"), host)
    assert "models pull Org/Other" in caught.value.hint


def test_without_a_name_everything_in_the_cache_is_meant(server: Hub, host: Host, model: Model) -> None:
    builtin.MakeBuiltin(inventory.ANY.builtin_models / "tiny").apply(host, Report())
    targets = check.targets(None, Settings(), host)
    assert [getattr(target, "model", None) for target in targets] == [REPO, "builtin:tiny"]
    assert all(check.verify(target, settings(), host, Report()).is_right for target in targets)
    (host.at(inventory.ANY.builtin_models / "tiny") / "config.json").write_text("{}")
    found = verified(host, "builtin:tiny")
    assert found.wrong == ("config.json",)
    assert check.repair(found, Settings(), host, Report()).is_right


# Directories of the user's own


@pytest.fixture
def directory(host: Host) -> Path:
    path = Path("/models/Org/Deep/Name")
    for name, content in checkpoint().items():
        if name in WANTED:
            host.make_dir((path / name).parent)
            host.at(path / name).write_bytes(content)
    return path


def local(host: Host, path: Path) -> Verified:
    return check.verify(path, settings(), host, Report())


def test_parity_row_15_a_directory_is_checked_and_described(host: Host, directory: Path) -> None:
    """S1's local check: config.json, a tokenizer, weights; it printed model_type and vocab_size."""
    found = local(host, directory)
    assert found.is_right
    assert (found.summary.model_type, found.summary.vocab_size) == ("qwen3", 320)
    for name, word in (("config.json", "config.json"), ("tokenizer.json", "tokenizer"), (SHARD, SHARD)):
        kept = host.at(directory / name).read_bytes()
        host.at(directory / name).unlink()
        assert any(word in problem for problem in local(host, directory).problems)
        host.at(directory / name).write_bytes(kept)
    assert local(host, directory).is_right


def test_parity_row_10_a_path_below_a_models_directory_is_meant(host: Host, directory: Path) -> None:
    """S0's tree: any nesting, MODEL_PATH relative to it."""
    (target,) = check.targets("Deep/Name", settings(model="Deep/Name", models_dir="/models/Org"), host)
    assert target == directory
    (target,) = check.targets(str(directory), settings(model=str(directory)), host)
    assert target == directory


def test_the_notes_that_a_hub_client_leaves_in_a_directory_are_used(server: Hub, host: Host) -> None:
    from huggingface_hub import snapshot_download

    server.add(REPO, {name: content for name, content in checkpoint().items() if name in WANTED})
    path = Path("/models/copy")
    snapshot_download(REPO, local_dir=host.at(path), endpoint=server.url, token=False)
    found = local(host, path)
    assert (found.is_right, found.checked) == (True, len(WANTED))
    flip(host.at(path) / SHARD)
    assert local(host, path).wrong == (SHARD,)


def test_a_list_of_checksums_beside_the_files_is_used(host: Host, directory: Path) -> None:
    lines = [f"{hashlib.sha256(checkpoint()[name]).hexdigest()}  ./{name}" for name in sorted(WANTED)]
    outside = f"{'0' * 64}  ../../etc/passwd"
    host.at(directory / "SHA256SUMS").write_text("\n".join([*lines, outside, "garbage", ""]))
    assert (local(host, directory).is_right, local(host, directory).checked) == (True, len(WANTED))
    flip(host.at(directory) / SHARD)
    host.at(directory / "a/b/c.json").unlink()
    found = local(host, directory)
    assert (found.wrong, found.missing) == ((SHARD,), ("a/b/c.json",))


def test_a_directory_cannot_be_repaired_and_says_why(host: Host, directory: Path) -> None:
    host.at(directory / SHARD).unlink()
    with pytest.raises(ModelError, match="nobody knows where its files came from"):
        check.repair(local(host, directory), settings(), host, Report())


# Sums


def test_a_sum_leaves_no_trace_in_the_access_time(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10_000_000)
    os.utime(path, ns=(1, 1))
    counted: list[int] = []
    digest = hashlib.sha256(b"x" * 10_000_000).hexdigest()
    assert list(checksums.find_wrong([(path, digest), (path, "0" * 64)], counted.append)) == [path]
    assert sum(counted) == 20_000_000
    assert path.stat().st_atime_ns == 1


def test_what_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(checksums.find_wrong([(tmp_path / "none", "0" * 64)], lambda *_: None))
    with pytest.raises(IsADirectoryError):
        list(checksums.find_wrong([(tmp_path, "0" * 64)], lambda *_: None))
