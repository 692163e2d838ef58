"""Whether a model's directory is complete: everything vLLM will open is there and readable."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from installer.base.host import Host
from installer.base.language import tr
from installer.model import selection
from installer.model.plain_file import entries_below, read_regular
from installer.model.safetensors import Damaged, Tensor, read_header
from installer.model.selection import GGUF, GGUF_HINT

TOKENIZERS = (
    ("tokenizer.json",), ("tokenizer.model",), ("tekken.json",), ("vocab.json", "merges.txt"), ("vocab.txt",),
)  # fmt: skip
PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


class Damage(str):
    """A problem of a file that is there, but cannot be what it should be."""

    __slots__ = ()


def check_directory(path: Path, *, with_pickles: bool = False) -> list[str]:
    """Everything that keeps the directory from being a complete model, one sentence each."""
    if not path.is_dir():
        return [tr("{path} is no directory", path=path)]
    problems: list[str] = []
    if selection.is_adapter([file.name for file in path.iterdir()]):
        json_object(path / selection.ADAPTER, problems)
        read_headers(path, problems)
        return problems
    is_consolidated = not (path / "config.json").exists() and (path / "params.json").exists()
    config = json_object(path / ("params.json" if is_consolidated else "config.json"), problems)
    problems += _check_tokenizer(path)
    problems += _check_weights(path, with_pickles)
    if "vision_config" in config and not any((path / name).is_file() for name in PROCESSORS):
        problems.append(tr("{path} is a vision model without {file}", path=path, file=PROCESSORS[0]))
    return problems


def obstacles(path: Path, host: Host) -> Iterator[tuple[Path, str]]:
    """Places that a user other than root may not use, with the rights they lack; none where a link leads nowhere."""
    for directory in (path, *path.parents):
        # The directory itself is listed, those above it are only passed through.
        needed = 0o005 if directory == path else 0o001
        if host.at(directory).stat().st_mode & needed != needed:
            yield directory, "rx" if directory == path else "x"
    real = host.at(path)
    for entry in sorted(entries_below(real)):
        shown = path / entry.relative_to(real)
        try:
            needed = 0o005 if entry.is_dir() else 0o004
            if entry.stat().st_mode & needed != needed:
                yield shown, "r"
        except OSError:
            yield shown, ""


def check_access(path: Path, host: Host) -> list[str]:
    """What keeps a user other than root from reading the directory. Takes a host path."""
    return [_closed(place, rights) for place, rights in obstacles(path, host)]


def _closed(place: Path, rights: str) -> str:
    if not rights:
        return tr("{path} is a link to nothing", path=place)
    if "x" in rights:
        return tr("the service's user may not enter {directory} (chmod {mode})", directory=place, mode=f"o+{rights}")
    return tr("the service's user may not read {path} (chmod o+r)", path=place)


def json_object(path: Path, problems: list[str]) -> dict[str, object]:
    """The file's content; what is wrong with it is added to the problems."""
    try:
        content = json.loads(read_regular(path))
        if not isinstance(content, dict):
            raise ValueError(tr("no JSON object"))
    except FileNotFoundError:
        problems.append(tr("{path} is missing", path=path))
    except OSError as error:
        problems.append(tr("{path} cannot be read: {reason}", path=path, reason=error.strerror))
    except (ValueError, RecursionError) as error:
        problems.append(Damage(tr("{path} is damaged: {reason}", path=path, reason=error)))
    else:
        return content
    return {}


def tokenizer_of(path: Path) -> str | None:
    """The file, or the files together, that hold the tokenizer."""
    for names in TOKENIZERS:
        if all((path / name).is_file() for name in names):
            return " and ".join(names)
    others = sorted([*path.glob("*.tiktoken"), *path.glob("tokenizer.model.v*")])
    return others[0].name if others else None


def _check_tokenizer(path: Path) -> list[str]:
    if tokenizer_of(path):
        return []
    return [tr("{path} has no tokenizer (tokenizer.json, tokenizer.model or the like)", path=path)]


def _check_weights(path: Path, with_pickles: bool) -> list[str]:
    problems: list[str] = []
    places: dict[str, str] = {}
    pickles = selection.pickles([file.name for file in path.iterdir()]) if with_pickles else []
    for index in sorted(path.glob("pytorch_model.bin.index.json" if pickles else "*.safetensors.index.json")):
        shards = json_object(index, problems).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            problems.append(tr("{path} names no weights", path=index))
            continue
        places |= shards
    expected = set(places.values())
    if any("/" in name or "\0" in name or name in ("", "..") for name in expected):
        return [*problems, tr("{path} has an index that names files outside of it", path=path)]
    headers = read_headers(path, problems)
    found = {file.name for file in path.glob("*.safetensors")} | set(pickles)
    problems += [tr("{path} is missing (named in the index)", path=path / name) for name in sorted(expected - found)]
    for tensor, shard in places.items():
        if shard in headers and tensor not in headers[shard]:
            problems.append(
                tr(
                    "{path} has no tensor {tensor!r}, which the index places there",
                    path=path / shard,
                    tensor=tensor[:80],
                )
            )
            break
    if not found and not expected:
        problems.append(_no_weights(path))
    return problems


def read_headers(path: Path, problems: list[str]) -> dict[str, Mapping[str, Tensor]]:
    """The tensors of every weight file by its name; what is wrong with one is added to the problems."""
    headers = {}
    for file in sorted(path.glob("*.safetensors")):
        try:
            headers[file.name] = read_header(file)
        except Damaged as fault:
            problems.append(Damage(tr("{path} is damaged: {reason}", path=file, reason=fault)))
        except OSError as error:
            reason = error.strerror or tr("it cannot be read")
            problems.append(Damage(tr("{path} is damaged: {reason}", path=file, reason=reason)))
    return headers


def _no_weights(path: Path) -> str:
    pickles = selection.pickles([file.name for file in path.iterdir()])
    if pickles:
        return tr(
            "{path} has its weights only as Python pickles ({file}), which can run any code when loaded",
            path=path,
            file=pickles[0],
        )
    if any(path.glob("*.gguf")):
        return tr("{path} has its weights only as GGUF ({why}; {hint})", path=path, why=tr(GGUF), hint=tr(GGUF_HINT))
    return tr("{path} holds no weights (*.safetensors)", path=path)
