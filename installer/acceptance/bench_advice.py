"""What the figures of `bench` speak for: how many at once, which context, how many engines; each with its evidence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from installer.acceptance.measured import Measured, Step
from installer.base.language import tr

WHOLE = 0.95  # of the most that was seen
FALLS = 0.8  # of the most good requests: what is below has lost them
ROOMY = 0.8  # share of the cache below which more would have fitted
FULL = 0.95  # share of the cache from which others wait for room
KILO = 1024


@dataclass(frozen=True)
class Advice:
    about: str  # the setting
    text: str  # what to do
    evidence: str
    command: str = ""


def advice(measured: Measured) -> list[Advice]:
    return [*_at_once(measured), *_context(measured), *_replicas(measured)] if measured.steps else []


def knee(measured: Measured) -> Step:
    """The fewest at once with which it makes nearly all that it can."""
    return next(step for step in measured.steps if step.tokens >= WHOLE * measured.best.tokens)


def _at_once(measured: Measured) -> Iterator[Advice]:
    served, best, last = measured.served, measured.best_good, measured.steps[-1]
    limit = served.most_at_once * served.engines if served.most_at_once else None
    if best and last.good_requests < FALLS * best.good_requests and (limit is None or limit > best.concurrency):
        each = -(-best.concurrency // served.engines)
        yield Advice(
            "MAX_NUM_SEQS",
            tr("let one engine answer {count} at once", count=each),
            tr(
                "with {few} at once {good:.2f} requests/s kept {goals}, with {many} at once {fewer:.2f}",
                few=best.concurrency, good=best.good_requests, goals=goals(measured),
                many=last.concurrency, fewer=last.good_requests,
            ),
            _deploy(measured, each),
        )  # fmt: skip
    elif (full := _held_back(measured, limit)) and full.cache_used is not None and served.most_at_once:
        yield Advice(
            "MAX_NUM_SEQS",
            tr("let one engine answer {count} at once", count=2 * served.most_at_once),
            tr(
                "with {count} at once {waiting:.0f} waited, {running:.0f} ran, and {share:.0%} of the cache was used",
                count=full.concurrency, waiting=full.waiting, running=full.running, share=full.cache_used,
            ),
            _deploy(measured, 2 * served.most_at_once),
        )  # fmt: skip


def _held_back(measured: Measured, limit: int | None) -> Step | None:
    """A step in which requests waited for their number alone, while there was room in the cache."""
    for step in measured.steps:
        if limit and step.waiting and step.running and step.running >= limit:
            return step if step.cache_used is not None and step.cache_used < ROOMY else None
    return None


def _context(measured: Measured) -> Iterator[Advice]:
    """The cache is shared by all who are answered at once: how long each may be, if as many are to fit as it bears.

    How many those are is known only where more were measured.
    """
    served, step = measured.served, measured.best_good or knee(measured)
    shares = [each.cache_used for each in measured.steps if each.cache_used is not None]
    room = (served.cache_tokens or 0) // step.concurrency // KILO * KILO
    if not shares or room < KILO:
        return
    if room < served.context and max(shares) >= FULL and any(each.waiting for each in measured.steps):
        text = tr("if no client needs more, a context of {tokens} keeps one from taking the place of many", tokens=room)
    elif room >= 2 * served.context and max(shares) < ROOMY and step is not measured.steps[-1]:
        text = tr("there is room for a context of {tokens}, as far as the model has it", tokens=room)
    else:
        return
    evidence = tr(
        "the cache holds {tokens} tokens, and {share:.0%} of it was used; {count} at once have {room} each",
        tokens=served.cache_tokens, share=max(shares), count=step.concurrency, room=room,
    )  # fmt: skip
    command = f"sudo vllm-install set-context {room} --service {served.service}" if served.service else ""
    yield Advice("MAX_MODEL_LEN", text, evidence, command)


def _replicas(measured: Measured) -> Iterator[Advice]:
    """Another engine helps where this one is at its end, and there is a GPU for it."""
    served, free = measured.served, measured.machine.gpus_free
    each = max(1, len(measured.machine.gpus) // served.engines)
    more, full = free // each, knee(measured)
    if more and measured.machine.gpus and full is not measured.steps[-1]:
        count = served.engines + more
        yield Advice(
            "REPLICAS",
            tr("serve with {count} engines", count=count),
            tr(
                "from {count} at once on it makes {tokens:.0f} tokens/s and no more; {free} GPUs of this host are free",
                count=full.concurrency, tokens=measured.best.tokens, free=free,
            ),
            f"sudo vllm-install set REPLICAS={count} --service {served.service}" if served.service else "",
        )  # fmt: skip


def goals(measured: Measured) -> str:
    return ", ".join(f"{name} ≤ {value:g} ms" for name, value in measured.load.goals.items())


def _deploy(measured: Measured, count: int) -> str:
    service = measured.served.service
    return f"sudo vllm-install deploy --service {service} -- --max-num-seqs {count}" if service else ""
