"""Which files of a repository vLLM loads: of a checkpoint in several formats, one."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import PurePosixPath

from installer.base.errors import InstallError, Refused
from installer.base.language import mark, tr
from installer.spec.model import ModelError, ModelFile

# A LoRA adapter, as PEFT writes it.
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# What an engine reads besides the weights; everything else in a repository (pictures, papers, logs) stays there.
SMALL_FILES = {".json", ".jinja", ".txt", ".model", ".py", ".tiktoken", ".vocab", ".bpe", ".spm"}
# Pickles that lie beside the weights of many repositories and are none.
OF_TRAINING = {"training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt"}
PICKLES = {".bin", ".pt", ".pth", ".ckpt"}
OTHER_FORMATS = {"original", "onnx", "openvino", "coreml", "gguf", "metal", "checkpoints", "runs"}
HUB_TOKENIZERS = {"tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"}
GGUF = mark("vLLM reads it only with the plugin vllm-gguf-plugin, which is no part of the engine")
GGUF_HINT = mark(
    "choose the original model's repository, or an FP8, AWQ or GPTQ version of it, with .safetensors files"
)


def select(repo: str, files: Iterable[ModelFile], *, with_pickles: bool = False) -> tuple[ModelFile, ...]:
    """The files that vLLM loads. Of a checkpoint in several formats, one; pickles only where there is nothing else."""
    useful = [f for f in files if not _is_aside(f.name)]
    names = {f.name for f in useful}
    if is_adapter(names):
        return tuple(sorted((f for f in useful if f.name in (ADAPTER, ADAPTER_WEIGHTS)), key=lambda f: f.name))
    safetensors = {name for name in names if name.endswith(".safetensors") and "/" not in name}
    consolidated = {name for name in safetensors if name.startswith("consolidated")}
    # vLLM takes the consolidated form whenever it sees it, so exactly one form may be on disk.
    is_standard = bool(safetensors - consolidated) and "config.json" in names and bool(names & HUB_TOKENIZERS)
    weights = safetensors - consolidated if is_standard or not consolidated else consolidated
    if not weights and with_pickles:
        weights = set(pickles(names))
    if not weights:
        raise _unloadable(repo, names)
    if "config.json" not in names and not (consolidated and "params.json" in names):
        raise ModelError(
            tr("{repo} has no config.json, so it is no complete model", repo=repo),
            tr("choose the full model's repository"),
        )
    other_index = tuple({"pytorch", "consolidated", "model."} - _indexes(weights, consolidated))
    chosen = [
        f
        for f in useful
        if f.name in weights
        or (is_standard and _is_module_weight(f.name))
        or (_is_small(f.name) and not (f.name.endswith(".index.json") and f.name.startswith(other_index)))
    ]
    _refuse_clashes(chosen)
    return tuple(sorted(chosen, key=lambda f: f.name))


def is_adapter(names: Collection[str]) -> bool:
    """Whether it is a LoRA adapter; a whole model may have the configuration of one beside it."""
    weights = {name for name in names if name.endswith(".safetensors") and "/" not in name}
    return ADAPTER in names and weights == {ADAPTER_WEIGHTS}


def pickles(names: Collection[str]) -> list[str]:
    """The weights, where pickles are all there is: in the form that vLLM looks for first."""
    top = sorted(name for name in names if "/" not in name)
    if any(name.endswith(".safetensors") for name in top):
        return []
    for suffix in (".bin", ".pt"):
        found = [name for name in top if name.endswith(suffix) and name not in OF_TRAINING]
        if found:
            return found
    return []


def _indexes(weights: set[str], consolidated: set[str]) -> set[str]:
    """What the names of the index that goes with these weights begin with."""
    if not all(name.endswith(".safetensors") for name in weights):
        return {"pytorch"}
    return {"model."} if weights.isdisjoint(consolidated) else {"consolidated"}


def is_read(name: str) -> bool:
    """Whether an engine may take notice of a file, whoever put it there."""
    return _is_small(name) or PurePosixPath(name).suffix.lower() in {".safetensors", ".gguf", *PICKLES}


def _is_aside(name: str) -> bool:
    parts = name.split("/")
    if any(part.startswith(".") for part in parts):
        return True
    return len(parts) > 1 and (parts[0].lower() in OTHER_FORMATS or parts[0].startswith("checkpoint-"))


def _is_small(name: str) -> bool:
    base = PurePosixPath(name).name
    return PurePosixPath(base).suffix.lower() in SMALL_FILES or base.startswith("tokenizer.model")


def _is_module_weight(name: str) -> bool:
    """Pooling and dense layers of embedding models: `2_Dense/model.safetensors`."""
    return re.fullmatch(r"\d+_\w+/[^/]+\.safetensors", name) is not None


def _refuse_clashes(files: Iterable[ModelFile]) -> None:
    names = {f.name for f in files}
    folded: dict[str, str] = {}
    for name in sorted(names):
        if (other := folded.setdefault(name.casefold(), name)) != name:
            raise ModelError(
                tr(
                    "the repository holds {name!r} and {other!r}, which not every file system tells apart",
                    name=other,
                    other=name,
                ),
                tr("do not use this model; report it to the hub"),
            )
        for parent in PurePosixPath(name).parents:
            if str(parent) in names:
                raise ModelError(
                    tr("the repository holds {name!r} both as a file and as a directory", name=str(parent)),
                    tr("do not use this model; report it to the hub"),
                )


def _unloadable(repo: str, names: set[str]) -> InstallError:
    suffixes = {PurePosixPath(name).suffix.lower() for name in names}
    if suffixes & PICKLES:
        return ModelError(
            tr("{repo} has its weights only as Python pickles, which can run any code when they are loaded", repo=repo),
            tr(
                "choose a repository with .safetensors files; or, if you trust who made it: --allow-pickle {repo}",
                repo=repo,
            ),
        )
    if ".gguf" in suffixes:
        return Refused(tr("{repo} has its weights only as GGUF: {why}", repo=repo, why=tr(GGUF)), tr(GGUF_HINT))
    return ModelError(
        tr("{repo} has no weights that vLLM can load (no .safetensors file)", repo=repo), tr("check the model's name")
    )
