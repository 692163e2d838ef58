"""Which of the profiled models fit this host, or hardware that is only described: context, and how many at once."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from installer.base.errors import UsageError
from installer.base.language import tr
from installer.base.sizes import GIB
from installer.checks import preflight
from installer.checks.placement import usable_gpus
from installer.families.vllm.serve import CPU_MEMORY_SHARE
from installer.memory import capacity
from installer.memory.capacity import Outlook
from installer.memory.device import Device
from installer.memory.shape import shape_of
from installer.model import formats, profiles
from installer.model.model_about import About
from installer.model.profiles import IMAGES, Family, ProfiledModel
from installer.spec.facts import Facts, Gpu
from installer.spec.settings import Settings
from installer.spec.vendors import NVIDIA

MOST_GPUS = 64
SMALLER = (16384, 8192, 4096)  # contexts that are tried where the one that most uses want does not fit


@dataclass(frozen=True)
class Hardware:
    """What the models are to run on: so many equal GPUs, or the host's processor."""

    kind: str
    count: int
    memory: int  # bytes of one GPU, or of the host
    name: str

    @property
    def is_cpu(self) -> bool:
        return self.kind == "cpu"

    def describe(self) -> str:
        if self.is_cpu:
            return tr(
                "no GPU, {memory:.0f} GiB of memory (of which vLLM takes {share:g})",
                memory=self.memory / GIB,
                share=CPU_MEMORY_SHARE,
            )
        return tr("{count} x {gpu}, {memory:.0f} GiB each", count=self.count, gpu=self.name, memory=self.memory / GIB)


@dataclass(frozen=True)
class Fit:
    """One model on that hardware."""

    model: ProfiledModel
    family: str
    gpus: int
    context: int  # the one that was judged
    answer: Outlook
    requests: int  # of that context at once
    largest: int  # context that fits alone
    takes_images: bool
    format: str
    reduced: bool = False  # less context than most uses want

    @property
    def runs(self) -> bool:
        return self.answer is not Outlook.CANNOT

    @property
    def is_close(self) -> bool:
        return self.answer is Outlook.CLOSE

    def command(self) -> str:
        parallel = f" --tensor-parallel-size {self.gpus}" if self.gpus > 1 else ""
        return f"sudo vllm-install deploy --model {self.model.id} --context {self.context}{parallel}"

    def to_json(self) -> dict[str, object]:
        return {
            "model": self.model.id,
            "family": self.family,
            "parameters": self.model.parameters,
            "weights_bytes": self.model.bytes,
            "format": self.format,
            "takes_images": self.takes_images,
            "gpus": self.gpus,
            "context": self.context,
            "reduced": self.reduced,
            "answer": self.answer.value,
            "requests": self.requests,
            "largest_context": self.largest,
            "command": self.command() if self.runs else None,
        }


def parse_hardware(text: str) -> Hardware:
    """2x24GiB, 8x141GB or 80: so many GPUs of so much memory; the makers' GB are GiB, nearly."""
    match = re.fullmatch(r"(?:(\d{1,3})\s*x\s*)?(\d{1,5}(?:\.\d{1,3})?)\s*(?:G|GB|GiB)?", text.strip(), re.IGNORECASE)
    if not match:
        raise UsageError(
            tr("--gpu {text!r}: expected GPUs and the memory of each", text=text),
            tr("for example --gpu 24GiB or --gpu 2x80GB"),
        )
    count, memory = int(match[1] or 1), int(float(match[2]) * GIB)
    if not 1 <= count <= MOST_GPUS or memory < GIB:
        raise UsageError(tr("--gpu {text!r}: expected 1 to {most} GPUs of at least 1 GiB", text=text, most=MOST_GPUS))
    return Hardware(NVIDIA.kind, count, memory, "GPU")


def hardware_of(facts: Facts, settings: Settings) -> Hardware:
    """This host's own: its fastest GPUs that are alike, else its processor."""
    kind = preflight.choose_engine(settings, facts)
    gpus = usable_gpus(facts, kind)
    if not gpus or not gpus[0].memory_total:
        return Hardware("cpu", 1, facts.node_memory, facts.cpu)
    alike = [gpu for gpu in gpus if gpu.name == gpus[0].name]
    return Hardware(kind, len(alike), min(gpu.memory_total for gpu in alike), gpus[0].name)


def recommend(hardware: Hardware, facts: Facts, context: int | None = None) -> list[Fit]:
    """Every profiled model that can run there: those that fit first, then with less context; the largest first."""
    fits = [
        _fit(model, family, hardware, context)
        for family in profiles.load_profiles().families
        for model in family.models
        if _can_run(model, hardware, facts)
    ]
    order = (Outlook.FITS, Outlook.CLOSE, Outlook.CANNOT)

    def rank(fit: Fit) -> tuple[bool, bool, int, int, int, str]:
        of_the_model = (-fit.model.parameters, fit.model.bytes, fit.model.id)
        return (not fit.runs, fit.reduced, order.index(fit.answer), *of_the_model)

    return sorted(fits, key=rank)


def _can_run(model: ProfiledModel, hardware: Hardware, facts: Facts) -> bool:
    """Whether the engine and the hardware have what the model's format needs."""
    if hardware.is_cpu and _takes_images(model):
        return False
    about = About(model.config, names=frozenset(("config.json", "model.safetensors")))
    return not any(problem.fatal for problem in formats.check_format(about, model.id, hardware.kind, Settings(), facts))


def _takes_images(model: ProfiledModel) -> bool:
    return any(model.config.get(name) for name in IMAGES)


def _fit(model: ProfiledModel, family: Family, hardware: Hardware, context: int | None) -> Fit:
    """The model on as few GPUs as its context fits on, else with less of it; on all GPUs where it fits on none."""
    best = _on_few(model, family, hardware, context)
    for less in () if context or best.runs else SMALLER:
        smaller = _on_few(model, family, hardware, less)
        if smaller.answer is Outlook.FITS and less < best.context:
            return dataclasses.replace(smaller, reduced=True)
    return best


def _on_few(model: ProfiledModel, family: Family, hardware: Hardware, context: int | None) -> Fit:
    best: Fit | None = None
    for gpus in _numbers(model, hardware):
        best = _on(model, family, hardware, gpus, context)
        if best.answer is Outlook.FITS:
            return best
    assert best is not None, "one GPU is always tried"
    return best


def _numbers(model: ProfiledModel, hardware: Hardware) -> Iterator[int]:
    """Numbers of GPUs that share a model: powers of two that divide its attention heads."""
    heads = shape_of(model.config, model.bytes, Settings()).config.heads
    gpus = 1
    while gpus <= hardware.count:
        if heads % gpus == 0:
            yield gpus
        gpus *= 2


def _on(model: ProfiledModel, family: Family, hardware: Hardware, gpus: int, context: int | None) -> Fit:
    share = CPU_MEMORY_SHARE if hardware.is_cpu else Settings.gpu_memory_utilization
    settings = dataclasses.replace(Settings(), tensor_parallel_size=gpus)
    shape = shape_of(model.config, model.bytes, settings)
    asked = min(context or family.context, shape.limit)
    device = Device(hardware.kind, hardware.memory, share, hardware.name)
    found = capacity.estimate(shape, device, dataclasses.replace(settings, max_model_len=asked))
    verdict = capacity.judge(found, asked)
    fits = verdict.answer is not Outlook.CANNOT and verdict.needed <= verdict.available
    return Fit(
        model=model,
        family=family.name,
        gpus=gpus,
        context=asked,
        answer=verdict.answer if fits else Outlook.CANNOT,
        requests=int(found.cache.requests(verdict.available, asked)) if fits else 0,
        largest=verdict.largest,
        takes_images=_takes_images(model),
        format=formats.recognise(About(model.config)).name,
    )


def with_gpus(facts: Facts, hardware: Hardware) -> Facts:
    """The facts of a host with GPUs that are only described: a current generation is assumed."""
    gpu = Gpu(NVIDIA.name, hardware.name, capability=(9, 0), memory_total=hardware.memory)
    return dataclasses.replace(facts, gpus=(gpu,) * hardware.count, nvidia_error="")


def notes(hardware: Hardware, facts: Facts, fits: Sequence[Fit]) -> list[str]:
    """What the table alone would not say."""
    lines = []
    if hardware.is_cpu:
        lines.append(
            tr("without a GPU answers are slow: good for trying things out; models that take images need a GPU")
        )
    if facts.nvidia_error and hardware.is_cpu:
        lines.append(tr("the NVIDIA driver does not work: {error}", error=facts.nvidia_error))
    if any(fit.reduced for fit in fits):
        lines.append(tr("the last of them fit with less context than most of their uses want"))
    if fits and fits[0].answer is Outlook.CANNOT:
        lines.append(tr("none of them fits at its context; ask for less with --context"))
    return lines
