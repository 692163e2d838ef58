"""Whether a directory is a complete model."""

from __future__ import annotations

from pathlib import Path

import pytest

from installer.base.host import Host
from installer.model.checkpoint import Damage, check_access, check_directory, obstacles
from tests.kit.weights import SHARD, WANTED, checkpoint, weights


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name, content in checkpoint().items():
        if name in WANTED:
            (tmp_path / "m" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "m" / name).write_bytes(content)
    return tmp_path / "m"


def test_a_complete_directory_has_no_problems(directory: Path) -> None:
    assert check_directory(directory) == []


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("config.json", None, "config.json is missing"),
        ("config.json", b"[1]", "no JSON object"),
        ("config.json", b"{", "damaged"),
        ("config.json", b"[" * 100_000, "damaged"),
        ("config.json", b"\xff\xfe{", "damaged"),
        ("config.json", b'{"vision_config": {}}', "preprocessor_config.json"),
        ("tokenizer.json", None, "no tokenizer"),
        (SHARD, None, f"{SHARD} is missing"),
        (SHARD, b"", "impossible length"),
        (SHARD, b"\xff" * 8 + b"{}", "impossible length"),
        (SHARD, (200).to_bytes(8, "little") + b"{" * 300, "no JSON"),
        (SHARD, (2).to_bytes(8, "little") + b"[]", "no JSON object"),
        (SHARD, (1 << 30).to_bytes(8, "little") + b"{}", "impossible length"),
        (SHARD, weights(1, 1000)[:-1], "should hold 1000 bytes"),
        (SHARD, weights(1, 1000).replace(b"[0, 1000]", b"[9, 1000]").replace(b"[9, ", b"[-1,"), "no place"),
        ("model.safetensors.index.json", b"{}", "names no weights"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "../../etc/shadow"}}', "outside"),
    ],
)
def test_what_is_missing_or_damaged_is_named(directory: Path, name: str, content: bytes | None, problem: str) -> None:
    (directory / name).unlink()
    if content is not None:
        (directory / name).write_bytes(content)
    assert any(problem in found for found in check_directory(directory)), check_directory(directory)


def test_a_damaged_file_is_told_from_a_missing_one_without_reading_the_words(directory: Path) -> None:
    (directory / SHARD).write_bytes(b"x")
    assert [type(found) for found in check_directory(directory)] == [Damage]
    (directory / SHARD).unlink()
    assert [type(found) for found in check_directory(directory)] == [str]


def test_every_problem_is_named_at_once(directory: Path) -> None:
    (directory / "config.json").unlink()
    (directory / "tokenizer.json").unlink()
    (directory / SHARD).unlink()
    assert len(check_directory(directory)) == 3


def test_pickles_alone_are_named(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    (found,) = check_directory(tmp_path)
    assert "pickles (pytorch_model.bin)" in found


def test_the_consolidated_form_is_complete_too(tmp_path: Path) -> None:
    for name in ("params.json", "tekken.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "consolidated.safetensors").write_bytes(weights(1, 10))
    assert check_directory(tmp_path) == []


def test_what_the_services_user_cannot_reach_is_named(host: Host) -> None:
    path = Path("/home/me/model")
    host.make_dir(path)
    (host.at(path) / "config.json").write_text("{}")
    assert check_access(path, host) == []
    (host.at(path) / "config.json").chmod(0o600)
    host.at(Path("/home/me")).chmod(0o700)
    host.at(path).chmod(0o711)
    assert [problem.split(" (")[0].rpartition(" ")[2] for problem in check_access(path, host)] == [
        "/home/me/model", "/home/me", "/home/me/model/config.json",
    ]  # fmt: skip
    (host.at(path) / "weights").symlink_to("nowhere")
    assert list(obstacles(path, host))[-2:] == [(path / "config.json", "r"), (path / "weights", "")]
    assert list(obstacles(path, host))[:2] == [(path, "rx"), (path.parent, "x")]
