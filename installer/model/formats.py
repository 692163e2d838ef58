"""How a checkpoint's numbers are stored, and whether this vLLM on this hardware can load and run it.

What it says of vLLM holds for the one version that installer/data/vllm.json describes; of another, nothing is claimed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from installer.base.language import mark, tr
from installer.checks.placement import usable_gpus
from installer.families.family import Abilities
from installer.families.known import family_of
from installer.model.model_about import About
from installer.model.model_config import Config
from installer.model.selection import GGUF, GGUF_HINT
from installer.runtime import vllm_flags
from installer.runtime.vllm_text import one_line
from installer.spec.facts import Facts
from installer.spec.problem import Problem
from installer.spec.settings import Settings

UNQUANTIZED = mark("unquantized")
# What a user may find a model in, in the order in which it is worth looking for.
OFFERED = {"fp8": "FP8", "compressed-tensors": "compressed-tensors", "awq": "AWQ", "gptq": "GPTQ"}
# NVIDIA's tool names one method in many dialects: a word of the dialect -> vLLM's name for it.
MODELOPT = {"NVFP4": "modelopt_fp4", "MXFP8": "modelopt_mxfp8", "MIXED_PRECISION": "modelopt_mixed", "FP8": "modelopt"}


@dataclass(frozen=True)
class Format:
    """A checkpoint's format: its name for people, and vLLM's for the method, empty for plain numbers."""

    name: str
    method: str = ""
    in_blocks: bool = False  # FP8 with a scale for each block of a matrix


def recognise(about: About) -> Format:
    """The format, from config.json, a file beside it, or the names of the weights."""
    weights = {name.rpartition(".")[2] for name in about.names}
    if "gguf" in weights and "safetensors" not in weights:
        return Format("GGUF", "gguf")
    described = _described(about)
    method = str(described.get("quant_method") or "").lower()
    if method.startswith("modelopt") or (not method and "quant_algo" in described):
        algorithm = str(described.get("quant_algo") or "").upper()
        found = next((name for word, name in MODELOPT.items() if word in algorithm), f"modelopt {algorithm}".lower())
        return Format(f"ModelOpt {algorithm}", found)
    if method == "compressed-tensors":
        return Format(f"compressed-tensors {_scheme(described)}".strip(), method)
    if method == "fp8":
        return Format("FP8", method, in_blocks=bool(described.get("weight_block_size")))
    if method in ("awq", "gptq"):
        return Format(f"{method.upper()} {described.get('bits', 4)}-bit", method)
    if method:
        return Format(method.upper() if method == "mxfp4" else method, method)
    config = Config.of(about.config)
    return Format(config.word("dtype") or config.word("torch_dtype") or UNQUANTIZED)


def _described(about: About) -> Mapping[str, object]:
    text = about.config.get("text_config")
    for place in (about.config, text if isinstance(text, dict) else {}):
        for name in ("quantization_config", "compression_config"):
            value = place.get(name)
            if isinstance(value, dict):
                inner = value.get("quantization")
                return {**value, **inner} if isinstance(inner, dict) else value
    inner = about.quantization.get("quantization")
    return inner if isinstance(inner, dict) else about.quantization


def _scheme(described: Mapping[str, object]) -> str:
    """w4a16 and the like, of the first group of layers."""
    groups = described.get("config_groups")
    first = next(iter(groups.values()), None) if isinstance(groups, dict) else None
    if not isinstance(first, dict):
        return ""
    parts = []
    for letter, name in (("w", "weights"), ("a", "input_activations")):
        side = first.get(name)
        parts.append(f"{letter}{side.get('num_bits', 16)}" if isinstance(side, dict) else f"{letter}16")
    weights = first.get("weights")
    is_float = isinstance(weights, dict) and weights.get("type") == "float"
    return "".join(parts) + (" (FP8)" if is_float and "w8" in parts else "")


def check_format(about: About, model: str, kind: str, settings: Settings, facts: Facts) -> Iterator[Problem]:
    """What keeps the model from running here, said before its weights are fetched."""
    found = recognise(about)
    if found.method == "gguf":
        yield Problem(tr("{model} has its weights only as GGUF", model=model), tr(GGUF), tr(GGUF_HINT))
        return
    known = family_of(settings).abilities()
    if family_of(settings).version(settings) != known.version or not known.architectures:
        return
    yield from _check_architecture(about, model, known)
    if not found.method:
        return
    why = _why_not(found, kind, settings, facts, known)
    if why:
        works = [
            name for method, name in OFFERED.items() if not _why_not(Format(name, method), kind, settings, facts, known)
        ]
        name = one_line(found.name, 80)
        yield Problem(
            tr("{model} is quantized as {format}, which cannot be run here", model=model, format=name),
            why,
            tr("choose another version of the model: {formats}", formats=tr(", ").join([tr(UNQUANTIZED), *works])),
        )


def _why_not(found: Format, kind: str, settings: Settings, facts: Facts, known: Abilities) -> str:
    if found.method not in known.quantizations:
        return tr("vLLM {version} has no such method", version=known.version)
    flags = vllm_flags.given(settings.vllm_args)
    if found.method in known.deprecated_quantizations and "--allow-deprecated-quantization" not in flags:
        return tr(
            "vLLM {version} is about to drop it, and loads it only with -- --allow-deprecated-quantization",
            version=known.version,
        )
    if kind == "rocm" and found.method not in known.rocm_quantizations:
        return tr("vLLM has it for NVIDIA GPUs only")
    if kind == "cpu" and found.method in known.quantizations_without_cpu:
        return tr("vLLM has it for GPUs only")
    if kind == "cpu" and found.in_blocks and "amx_tile" not in facts.cpu_flags:
        return tr("on a processor it needs AMX (Intel Sapphire Rapids or newer), which this one has not")
    lowest = known.quantizations[found.method]
    for gpu in usable_gpus(facts, kind)[: settings.tensor_parallel_size]:
        if gpu.capability and gpu.capability[0] * 10 + gpu.capability[1] < lowest:
            has = ".".join(map(str, gpu.capability))
            needed = f"{lowest // 10}.{lowest % 10}"
            return tr("it needs compute capability {needed}, and {gpu} has {has}", needed=needed, gpu=gpu.name, has=has)
    return ""


def _check_architecture(about: About, model: str, known: Abilities) -> Iterator[Problem]:
    """What vLLM dropped is refused; what it does not name may still run by code that is not its own."""
    names: Sequence[str] = about.architectures
    if not names or not known.architectures.isdisjoint(names):
        return
    last = known.removed_architectures.get(names[0])
    if last:
        yield Problem(
            tr("vLLM {version} cannot run {model}", version=known.version, model=model),
            tr(
                "{version} was its last version with the architecture {architecture}",
                version=last,
                architecture=names[0],
            ),
            tr("choose a newer model"),
        )
    else:
        yield Problem(
            tr(
                "vLLM {version} does not name the architecture {architecture} of {model}",
                version=known.version,
                architecture=names[0],
                model=model,
            ),
            tr("it will try code from the transformers package, which may fail or be slow"),
            tr("if it fails, a newer version may know it: --vllm-version"),
            fatal=False,
        )
