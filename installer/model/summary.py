"""What a model's directory holds, in a few figures: read from its small files and the headers of its weights."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from installer.base.language import tr
from installer.model import formats, model_about, profiles
from installer.model.checkpoint import PROCESSORS, read_headers, tokenizer_of
from installer.model.model_config import Config
from installer.runtime.vllm_text import one_line
from installer.spec.profile import Profile


@dataclass(frozen=True)
class Summary:
    model_type: str
    architectures: tuple[str, ...]
    vocab_size: int | None
    dtype: str | None
    quantization: str | None
    parameters: int
    tensors: int
    shards: int
    context: int
    tokenizer: str | None
    chat_template: bool
    vision: bool
    preprocessor: str | None
    profile: Profile  # what deploy would choose for it


def summarise(path: Path) -> Summary:
    """Never fails: what is missing or damaged is for `check_directory` to name."""
    about = model_about.read_directory(path)
    config = Config.of(about.config)
    headers = read_headers(path, [])
    found = formats.recognise(about)
    tensors = [tensor for header in headers.values() for tensor in header.values()]
    # The one that most of the numbers have: norms and scales are often kept wider than the rest.
    numbers: Counter[str] = Counter()
    for tensor in tensors:
        numbers[tensor.dtype] += tensor.numbers
    named = config.word("dtype") or config.word("torch_dtype")
    return Summary(
        model_type=str(about.config.get("model_type") or config.family),
        architectures=about.architectures,
        vocab_size=config.number("vocab_size") or None,
        dtype=named.removeprefix("torch.") or next((name for name, _ in numbers.most_common(1)), None),
        quantization=found.name if found.method else None,
        parameters=numbers.total(),
        tensors=len(tensors),
        shards=len(headers),
        context=config.limit,
        tokenizer=tokenizer_of(path),
        chat_template=bool(about.template),
        vision="vision_config" in about.config,
        preprocessor=next((name for name in PROCESSORS if name in about.names), None),
        profile=profiles.of(about),
    )


def describe(summary: Summary) -> list[str]:
    """The same for people: three lines."""
    size = f"{summary.parameters / 1e9:.1f} B" if summary.parameters >= 1e8 else f"{summary.parameters / 1e6:.1f} M"
    unknown = tr("unknown")
    what = tr(
        "model_type {type}, vocab_size {vocabulary}, dtype {dtype}, quantization {quantization}, context {context}",
        type=summary.model_type or unknown,
        vocabulary=summary.vocab_size or unknown,
        dtype=summary.dtype or unknown,
        quantization=summary.quantization or tr("none"),
        context=summary.context,
    )
    parts = tr(
        "{size} parameters in {tensors} tensors and {files} files, tokenizer {tokenizer}, chat template {template}",
        size=size,
        tensors=summary.tensors,
        files=summary.shards,
        tokenizer=summary.tokenizer or tr("missing"),
        template=tr("yes") if summary.chat_template else tr("no"),
    )
    if summary.vision:
        parts += tr(", vision, {preprocessor}", preprocessor=summary.preprocessor or tr("preprocessor missing"))
    return [one_line(what), parts, summary.profile.describe()]
