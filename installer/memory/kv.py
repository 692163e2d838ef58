"""How vLLM cuts its cache memory into blocks, and so how many tokens a given amount of memory holds.

The numbers follow vLLM's own arithmetic (v1/core/kv_cache_utils.py, v1/kv_cache_interface.py of 0.32.0), block for
block: an estimate that is off by a rounding rule is off by a great deal for models with windows or states.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum


class Kind(Enum):
    """What a layer keeps of a sequence."""

    FULL = "full"  # every token
    WINDOW = "window"  # the last tokens only
    STATE = "state"  # a state of fixed size


@dataclass(frozen=True)
class Layer:
    """What one layer keeps on one GPU: bytes for each token, or bytes for the whole state of a sequence."""

    kind: Kind
    size: int
    window: int = 0


@dataclass(frozen=True)
class Rules:
    """What vLLM's choice of block size and what it keeps in flight depend on."""

    block_size: int
    in_flight: int  # tokens scheduled but not yet settled, which windows must hold besides their own
    state_alignment: int  # a block that must hold a state is a multiple of this many tokens
    states_per_request: int = 1


@dataclass(frozen=True)
class Group:
    """Layers that share one block table; a request takes blocks for each group separately."""

    kind: Kind
    block_size: int
    window: int

    def blocks(self, context: int, rules: Rules) -> int:
        if self.kind is Kind.STATE:
            return rules.states_per_request
        if self.kind is Kind.FULL:
            return _ceil(context, self.block_size)
        # One block more: a window need not begin where a block does.
        return _ceil(min(self.window - 1 + rules.in_flight, context), self.block_size) + 1


@dataclass(frozen=True)
class Cache:
    """The pool of equal blocks that all groups draw from."""

    block_bytes: int
    groups: tuple[Group, ...]
    rules: Rules

    def blocks(self, context: int) -> int:
        return sum(group.blocks(context, self.rules) for group in self.groups)

    def needed(self, context: int) -> int:
        """Bytes without which vLLM refuses this context: one request, and the empty block it keeps for itself."""
        return (self.blocks(context) + 1) * self.block_bytes if self.groups else 0

    def requests(self, memory: int, context: int) -> float:
        """How many requests of this length fit at once, as vLLM prints it (`Maximum concurrency`)."""
        return memory // self.block_bytes / self.blocks(context) if self.groups else float("inf")

    def tokens(self, memory: int, context: int) -> int:
        """What vLLM prints as `KV cache size`: with windows and states it depends on the context it is started with."""
        return int(self.requests(memory, context) * context) if self.groups else 0

    def largest(self, memory: int, limit: int) -> int:
        """The largest context up to the limit that one request can have; 0 where not even one token fits."""
        return last(limit, lambda context: self.needed(context) <= memory)


def last(limit: int, holds: Callable[[int], bool]) -> int:
    """The largest number from 1 to limit for which a condition holds that no larger number meets; 0 for none."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def arrange(layers: tuple[Layer, ...], rules: Rules, keep_windows: bool = True) -> Cache:
    """Groups and block size as vLLM chooses them; without keep_windows every token is kept in every layer."""
    if not keep_windows and any(layer.kind is Kind.FULL for layer in layers):
        layers = tuple(Layer(Kind.FULL, layer.size) if layer.kind is Kind.WINDOW else layer for layer in layers)
    layers = tuple(layer for layer in layers if layer.size > 0)
    if not layers:
        return Cache(0, (), rules)
    rules = _block_for_states(layers, rules)
    if len({(layer.kind, layer.window) for layer in layers}) == 1 and layers[0].kind is not Kind.STATE:
        group = Group(layers[0].kind, rules.block_size, layers[0].window)
        return Cache(sum(layer.size for layer in layers) * rules.block_size, (group,), rules)
    return _mixed(layers, rules)


def _block_for_states(layers: tuple[Layer, ...], rules: Rules) -> Rules:
    """A block of the attention layers must be able to hold a state, or it grows until it can."""
    state = max((layer.size for layer in layers if layer.kind is Kind.STATE), default=0)
    token = max((layer.size for layer in layers if layer.kind is not Kind.STATE), default=0)
    if not state or not token:
        return rules
    step = max(rules.state_alignment, rules.block_size)
    return replace(rules, block_size=step * max(1, _ceil(state, step * token)))


def _mixed(layers: tuple[Layer, ...], rules: Rules) -> Cache:
    """Layers of several kinds get pages of one size, and groups of as many layers as the rarest kind has."""
    page = max(layer.size if layer.kind is Kind.STATE else layer.size * rules.block_size for layer in layers)
    counts: dict[Group, int] = {}
    for layer in layers:
        group = Group(layer.kind, _tokens_in(page, layer, rules.block_size), layer.window)
        counts[group] = counts.get(group, 0) + 1
    fewest, most = min(counts.values()), max(counts.values())
    # Near-equal numbers are padded to the larger one rather than cut into many groups.
    together = most if most < fewest * 1.5 else fewest
    groups = tuple(group for group, count in counts.items() for _ in range(_ceil(count, together)))
    widest = max(_ceil(count, _ceil(count, together)) for count in counts.values())
    return Cache(widest * page, groups, rules)


def _tokens_in(page: int, layer: Layer, block_size: int) -> int:
    """A layer with smaller tokens puts more of them into the common page where they fill it; else it is padded."""
    own = layer.size * block_size
    return block_size * (page // own) if layer.kind is not Kind.STATE and page % own == 0 else block_size


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
