"""Which GPUs a service is given: those asked for, or the free ones, chosen once and kept by uuid.

Pure: settings and facts in, GPUs and problems out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from installer.base.language import tr
from installer.base.layout import Layout
from installer.base.report import size
from installer.families.known import family_of
from installer.runtime import vllm_flags
from installer.spec.facts import Facts, Gpu, Tenant, pci_address
from installer.spec.problem import Problem
from installer.spec.settings import Settings
from installer.spec.target import Placed
from installer.spec.values import AUTO
from installer.spec.vendors import NVIDIA, Vendor, of_kind, variables_of

WHOLE = 1.0 + 1e-9  # shares are decimal fractions, and their sum is not


@dataclass(frozen=True)
class Choice:
    """The GPUs to reckon with, and whether the unit names them: not where somebody else chooses."""

    gpus: tuple[Gpu, ...] = ()
    named: bool = False
    problems: tuple[Problem, ...] = ()
    by_hand: str = ""  # what chooses in our place

    @property
    def placed(self) -> tuple[Placed, ...]:
        return tuple(Placed(gpu.uuid, gpu.name, gpu.node) for gpu in self.gpus) if self.named else ()

    def of_each(self, settings: Settings) -> list[tuple[Placed, ...]]:
        """The GPUs of each replica: its own, or those that all of them share."""
        if engines_on(settings, len(self.placed)) > 1:
            return [self.placed] * settings.replicas
        each = gpus_of_one(settings) if self.placed else 0
        return [self.placed[number * each : (number + 1) * each] for number in range(settings.replicas)]


def usable_gpus(facts: Facts, kind: str) -> list[Gpu]:
    """The GPUs that an engine can use, fastest first, as CUDA itself counts them."""
    vendor = of_kind(kind)
    found = [gpu for gpu in facts.gpus if vendor and vendor.serves(gpu)]
    return sorted(found, key=lambda gpu: (gpu.capability or (0, 0), gpu.memory_total), reverse=True)


def gpus_of_group(settings: Settings) -> int:
    """What one engine takes on all of its hosts."""
    return settings.tensor_parallel_size * family_of(settings).gpus_a_rank(settings)


def gpus_of_one(settings: Settings) -> int:
    """What it takes here."""
    return gpus_of_group(settings) // max(1, len(settings.group_hosts))


def gpus_needed(settings: Settings) -> int:
    return gpus_of_one(settings) * settings.replicas


def engines_on(settings: Settings, gpus: int) -> int:
    """How many engines of the service are on each of that many GPUs: one, unless they share what one of them takes."""
    return settings.replicas if settings.gpus != AUTO and gpus == gpus_of_one(settings) else 1


def choose(settings: Settings, facts: Facts, kind: str, layout: Layout) -> Choice:
    vendor = of_kind(kind)
    if vendor is None:
        named = settings.gpus != AUTO
        return Choice(problems=(_no_gpus_for_the_cpu(settings),) if named else ())
    usable = usable_gpus(facts, kind)
    if (facts.nvidia_error and vendor is NVIDIA) or not usable:
        return Choice()  # which is a problem of its own
    if by_hand := chosen_by_hand(settings, facts.visible, kind):
        return _by_hand(by_hand, settings, usable)
    if settings.gpus != AUTO:
        return _asked_for(settings, facts, usable)
    return _automatic(settings, facts, vendor, usable, layout)


def describe(gpus: Sequence[Gpu]) -> str:
    """What there is, as one would name it."""
    return tr("; ").join(str(gpu) if gpu.is_slice or gpu.index < 0 else f"{gpu.index}: {gpu}" for gpu in gpus)


# by hand


def chosen_by_hand(settings: Settings, visible: Sequence[tuple[str, str]], kind: str) -> tuple[str, str] | None:
    """What wins over us: a variable of a drop-in, or vLLM's own flag."""
    for name, value in visible:
        if name in variables_of(kind):
            return name, value
    numbers = vllm_flags.given(settings.vllm_args).get("--device-ids")
    return None if numbers is None else ("--device-ids", numbers)


def _by_hand(chosen: tuple[str, str], settings: Settings, usable: list[Gpu]) -> Choice:
    """The unit shows it every GPU, because numbers count among those that are to be seen."""
    name, value = chosen
    gpus = [gpu for word in value.split(",") if (gpu := _by_ordinal(word.strip(), usable))]
    no_effect = Problem(
        tr("GPUS has no effect"),
        tr("{name}={value}, set by hand, wins over it", name=name, value=value),
        tr("take one of the two away"),
        fatal=False,
        id="gpus-by-hand",
    )
    problems = [] if settings.gpus == AUTO else [no_effect]
    if settings.replicas > 1:
        problems.append(_same_for_all(name, value))
    return Choice(tuple(gpus or usable[: gpus_needed(settings)]), False, tuple(problems), f"{name}={value}")


def _same_for_all(name: str, value: str) -> Problem:
    return Problem(
        tr("replicas cannot all have the same GPUs"),
        tr("{name}={value}, set by hand, would be that of each of them", name=name, value=value),
        tr("take it away, and name the GPUs of all of them with --gpus"),
        id="gpus-by-hand",
    )


def _by_ordinal(word: str, usable: list[Gpu]) -> Gpu | None:
    """As CUDA reads it: a number is a place in its own order, fastest first."""
    if word.isdecimal():
        return usable[int(word)] if int(word) < len(usable) else None
    return find(word, usable)


# asked for


def find(word: str, gpus: Sequence[Gpu]) -> Gpu | None:
    """The GPU of this index, PCI address or uuid; the beginning of a uuid will do where no other begins so."""
    if word.isdecimal():
        found = [gpu for gpu in gpus if gpu.index == int(word) and not gpu.is_slice]
    elif address := pci_address(word):
        found = [gpu for gpu in gpus if gpu.pci == address and not gpu.is_slice]
    else:
        same = [gpu for gpu in gpus if gpu.uuid.lower() == word.lower()]
        found = same or [gpu for gpu in gpus if gpu.uuid.lower().startswith(word.lower())]
    return found[0] if len(found) == 1 else None


def _asked_for(settings: Settings, facts: Facts, usable: list[Gpu]) -> Choice:
    found: list[Gpu] = []
    problems = []
    for word in settings.gpus:
        gpu = find(word, usable)
        if gpu is None:
            problems.append(_not_there(word, facts, usable))
        elif gpu in found:
            problems.append(_twice(word, gpu))
        else:
            found.append(gpu)
    if not problems and len(found) != gpus_needed(settings) and not _can_share(settings, len(found)):
        problems.append(_wrong_number(settings, len(found)))
    return Choice(tuple(found), _have_names(found), (*problems, *_slices_apart(found, gpus_of_one(settings))))


def _can_share(settings: Settings, named: int) -> bool:
    """Whether all replicas have room on the GPUs of one: only where somebody says so, as each is slower then."""
    return named == gpus_of_one(settings) and settings.replicas * settings.gpu_memory_utilization <= WHOLE


def _have_names(gpus: Sequence[Gpu]) -> bool:
    """Whether each can be told from the others when the host has started anew."""
    return bool(gpus) and len({gpu.uuid for gpu in gpus} - {""}) == len(gpus)


def _not_there(word: str, facts: Facts, usable: list[Gpu]) -> Problem:
    other = find(word, facts.gpus)
    if other:
        what = tr("{gpu} is not for this engine", gpu=other)
    elif word.isdecimal() or pci_address(word):
        what = tr("there is no GPU {word}", word=word)
    else:
        what = tr("the GPU {gpu} is not on this host", gpu=word)
    return Problem(
        what,
        tr("it can use {gpus}", gpus=describe(usable)) if other else tr("this host has {gpus}", gpus=describe(usable)),
        tr("name one of these with --gpus, or leave the choice to --gpus auto"),
        id="gpu-gone",
    )


def _twice(word: str, gpu: Gpu) -> Problem:
    return Problem(
        tr("a GPU is named twice"),
        tr("{word} is {gpu}, which stands in GPUS already", word=word, gpu=gpu),
        tr("name each GPU once with --gpus"),
    )


def _wrong_number(settings: Settings, named: int) -> Problem:
    count, size = gpus_needed(settings), settings.tensor_parallel_size
    many = tr("--replicas is {count}, and --tensor-parallel-size is {size}", count=settings.replicas, size=size)
    return Problem(
        tr("{named} GPUs are named, but the service takes {count}", named=named, count=count),
        many if settings.replicas > 1 else tr("--tensor-parallel-size is {size}", size=size),
        tr("name {count} GPUs with --gpus, or let more share the model with --tensor-parallel-size", count=count),
    )


def _no_gpus_for_the_cpu(settings: Settings) -> Problem:
    return Problem(
        tr("the cpu engine takes no GPU"),
        tr("GPUS names {gpus}", gpus=", ".join(settings.gpus)),
        tr("choose --gpus auto, or another engine with --engine"),
    )


def _slices_apart(gpus: Sequence[Gpu], count: int) -> Iterator[Problem]:
    """CUDA shows a process one slice at most."""
    if count > 1 and any(gpu.is_slice for gpu in gpus):
        yield Problem(
            tr("slices of a GPU cannot share a model"),
            tr("a process sees one of them at most, and {count} were asked for", count=count),
            tr("choose --tensor-parallel-size 1, or switch MIG off (sudo nvidia-smi -mig 0)"),
        )


# automatic


def _automatic(settings: Settings, facts: Facts, vendor: Vendor, usable: list[Gpu], layout: Layout) -> Choice:
    """Those it has, then idle ones, then those with room: the best first, and no more than it takes."""
    count, each = gpus_needed(settings), gpus_of_one(settings)
    whole = [gpu for gpu in usable if not gpu.is_slice]
    usable = whole if each > 1 and len(whole) >= count else usable
    others = [tenant for tenant in facts.tenants if tenant.unit != layout.unit_name]
    mine = (layout.unit_name, vendor.kind)
    own = next((tenant for tenant in facts.tenants if (tenant.unit, tenant.kind) == mine), None)
    kept = (where(own, usable) if own else held_by(layout.unit_name, usable))[:count]
    rest = sorted((gpu for gpu in usable if gpu not in kept), key=lambda gpu: _rank(gpu, settings, others, usable))
    free = [gpu for gpu in rest if _has_room(gpu, settings, others, usable, layout)]
    problems = []
    if len(kept) + len(free) < count == len(usable):
        free = rest  # the check of their memory says what stands in the way
    elif len(kept) + len(free) < count < len(usable):
        held = {gpu: _holders(gpu, others, usable) for gpu in rest if gpu not in free}
        problems.append(_held(held, len(free), count))
    chosen = [*kept, *free][:count]
    crowded = [gpu for gpu in chosen if gpu not in kept and _crowd(gpu, settings, others, usable) > WHOLE]
    problems += [_crowded(gpu, settings, others, usable) for gpu in crowded]
    gone = [placed for placed in own.gpus if not any(gpu.uuid == placed.uuid for gpu in usable)] if own else []
    problems += [_gone(placed, usable, chosen[len(kept) :], count - len(chosen)) for placed in gone]
    problems += _slices_apart(chosen, each)
    return Choice(tuple(chosen), _have_names(chosen), tuple(problems))


def where(tenant: Tenant, gpus: Sequence[Gpu]) -> list[Gpu]:
    """The GPUs that a service of ours is on; what an earlier version deployed is on those it holds, or the first."""
    vendor = of_kind(tenant.kind)
    mine = [gpu for gpu in gpus if vendor and gpu.vendor == vendor.name]
    if tenant.gpus:
        return [gpu for placed in tenant.gpus for gpu in mine if gpu.uuid == placed.uuid]
    by_hand = [value for name, value in tenant.visible if name in variables_of(tenant.kind)]
    named = [gpu for value in by_hand[:1] for word in value.split(",") if (gpu := _by_ordinal(word.strip(), mine))]
    return named or held_by(tenant.unit, mine) or mine[: tenant.count]


def held_by(unit: str, gpus: Sequence[Gpu]) -> list[Gpu]:
    """By a service: its replicas too."""
    service = Layout(unit.removesuffix(".service"))
    return [gpu for gpu in gpus if any(service.has_unit(holder.unit) for holder in gpu.holders)]


def free_memory(gpu: Gpu, layout: Layout) -> int:
    """What would be free if this service were stopped."""
    own = sum(holder.memory for holder in gpu.holders if layout.has_unit(holder.unit))
    return gpu.memory_total - gpu.memory_used + own


def _rank(gpu: Gpu, settings: Settings, others: list[Tenant], usable: list[Gpu]) -> tuple[bool, bool, bool, bool]:
    """What comes last: too old, much smaller than the best, promised to others already, in use."""
    tenants = [tenant.unit for tenant in others if gpu in where(tenant, usable)]
    too_old = bool(gpu.capability and gpu.capability < NVIDIA.minimum_capability)
    small = 2 * gpu.memory_total < max(each.memory_total for each in usable)
    in_use = bool(tenants or gpu.holders) or gpu.memory_used > gpu.memory_total // 20
    return too_old, small, _crowd(gpu, settings, others, usable) > WHOLE, in_use


def _crowd(gpu: Gpu, settings: Settings, others: list[Tenant], usable: list[Gpu]) -> float:
    """What the shares of all that are to be on a GPU add up to."""
    return settings.gpu_memory_utilization + sum(each.share for each in others if gpu in where(each, usable))


def _has_room(gpu: Gpu, settings: Settings, others: list[Tenant], usable: list[Gpu], layout: Layout) -> bool:
    """Of services that run, those count that have not taken their memory yet: they are about to."""
    here = [tenant for tenant in others if tenant.runs and gpu in where(tenant, usable)]
    coming = sum(tenant.share for tenant in here if gpu not in held_by(tenant.unit, usable))
    share = settings.gpu_memory_utilization + coming
    return free_memory(gpu, layout) >= int(share * gpu.memory_total) if gpu.memory_total else share <= WHOLE


def _holders(gpu: Gpu, others: list[Tenant], usable: list[Gpu]) -> str:
    """Those who hold a GPU, or else those who are about to."""
    coming = [tenant.unit for tenant in others if gpu in where(tenant, usable)]
    return tr(", ").join(map(str, gpu.holders or coming)) or tr("no process shows who holds it")


def _held(held: Mapping[Gpu, str], free: int, count: int) -> Problem:
    lines = []
    for gpu, holders in held.items():
        left = size(gpu.memory_total - gpu.memory_used)
        lines.append(tr("{gpu}: {free} free; {holders}", gpu=describe([gpu]), free=left, holders=holders))
    return Problem(
        tr("{count} GPUs were asked for, and {free} are free", count=count, free=free),
        tr("; ").join(lines),
        tr("stop what holds them, choose a smaller --gpu-memory-utilization, or name GPUs with --gpus"),
        id="gpu-memory-held",
    )


def _crowded(gpu: Gpu, settings: Settings, others: list[Tenant], usable: list[Gpu]) -> Problem:
    units = tr(" and ").join(tenant.unit for tenant in others if gpu in where(tenant, usable))
    total = _crowd(gpu, settings, others, usable)
    return Problem(
        tr("{gpu} is also that of {units}", gpu=gpu, units=units),
        tr("their shares of its memory add up to {total:g}", total=round(total, 2)),
        tr("they cannot run at once unless --gpu-memory-utilization of one is smaller"),
        fatal=False,
        id="gpu-shared",
    )


def _gone(placed: Placed, usable: list[Gpu], instead: list[Gpu], missing: int) -> Problem:
    return Problem(
        tr("the GPU {gpu} is not on this host", gpu=placed),
        tr("this host has {gpus}", gpus=describe(usable)),
        tr("{gpus} takes its place", gpus=describe(instead))
        if not missing
        else tr("name one of these with --gpus, or leave the choice to --gpus auto"),
        fatal=missing > 0,
        id="gpu-gone",
    )
