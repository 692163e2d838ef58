"""What bench measures, and with what load: all that is settled before the first step."""

from __future__ import annotations

import os
import secrets
import time
from dataclasses import dataclass

from installer import __version__
from installer.acceptance import apitest, subject
from installer.acceptance.apitest import Subject
from installer.acceptance.measured import Load, Machine, Measured, Served
from installer.acceptance.replies import Failed
from installer.acceptance.trial import Trial
from installer.base.errors import Exit, InstallError, Refused, UsageError
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import Layout
from installer.base.report import Report, size
from installer.checks.facts import gather
from installer.checks.placement import usable_gpus, where
from installer.checks.tenants import with_tenants
from installer.families.known import family_named
from installer.look import load
from installer.runtime import vllm_flags
from installer.runtime.vllm_text import without_password
from installer.spec.facts import Facts
from installer.spec.records import proved_target
from installer.spec.settings import FIELDS, Settings, named, to_text
from installer.spec.target import Target
from installer.spec.values import seconds
from installer.units.api import Api, NoAnswer
from installer.units.graph import members
from installer.units.syntax import exec_line

ENDLESS = 600.0  # seconds without a word from the service, after which it is given up
SECONDS, QUICK_SECONDS = 45.0, 12.0  # that a step is to take
PROMPT, ANSWER = 512, 128  # tokens, where the context has room
GOALS = {"ttft": 1000.0, "tpot": 50.0}  # milliseconds, where the service has none of its own


@dataclass(frozen=True)
class Wishes:
    """What was asked for; None where the service or the ladder decides."""

    is_quick: bool = False
    concurrency: tuple[int, ...] = ()
    prompt_tokens: int | None = None
    answer_tokens: int | None = None
    goals: dict[str, float] | None = None


@dataclass(frozen=True)
class Bench:
    """What is measured."""

    subject: Subject
    target: Target
    unit_text: str
    engines: tuple[Api, ...]  # each engine of it, which tells its own load
    is_trial: bool = False

    @property
    def flags(self) -> dict[str, str]:
        """Of vLLM, those that somebody wrote into the unit included."""
        return dict(vllm_flags.given(vllm_flags.split(exec_line(self.unit_text))[2]))


def of_service(service: str, key: str | None, host: Host, report: Report, target: Target | None = None) -> Bench:
    """As its clients meet it; it runs, is the one behind its port, and has answered."""
    target = target or proved_target(host, Layout(service))
    check_family(target.settings)
    found = subject.of_service(service, key, host, report, ENDLESS, target=target)
    _check_serves(found)
    numbers = [replica.number for replica in target.replicas] or [0]
    engines = [
        subject.of_service(service, key, host, report, load.ANSWER_WITHIN, number, target).api for number in numbers
    ]
    text = next(host.read(member.path) or "" for member in members(Layout(service), target))
    return Bench(found, target, text, tuple(engines))


def of_trial(trial: Trial) -> Bench:
    found = subject.of_trial(trial, ENDLESS)
    return Bench(found, trial.target, trial.unit_text, (found.api,), is_trial=True)


def check_family(settings: Settings) -> None:
    family = family_named(settings.engine_family)
    if not family.measures:
        raise Refused(
            tr("bench does not know how to ask {engine}'s own: nothing was measured", engine=family.title),
            tr("vllm-install test tells tokens/s of one answer"),
        )


def _check_serves(found: Subject) -> None:
    try:
        if found.is_ours:
            found.is_ours()
        apitest.models(found)
    except Failed as failed:
        raise InstallError(failed.text, failed.hint or found.look, Exit.NOT_RUNNING) from None
    except NoAnswer as error:
        raise InstallError(str(error), found.look, Exit.NOT_RUNNING) from None


# What is asked


def begin(bench: Bench, wishes: Wishes, host: Host, report: Report) -> Measured:
    """All that matters of where and what, before the first step."""
    settings = bench.target.settings
    facts = with_tenants(gather(host, settings, Layout(settings.service)), host, Layout(settings.service))
    sample = load.together(map(load.sample, bench.engines))
    if sample and sample.running:
        report.warn(
            tr(
                "others use the service now ({count:.0f} requests): the figures are of what they leave over",
                count=sample.running,
            )
        )
    return Measured(
        at=time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()),
        served=_served(bench, sample.cache_tokens if sample else None),
        machine=_machine(bench.target, facts),
        load=_load(bench, wishes),
    )


def _load(bench: Bench, wishes: Wishes) -> Load:
    context = _context(bench)
    prompt, answer = (
        wishes.prompt_tokens or min(PROMPT, context // 2),
        wishes.answer_tokens or min(ANSWER, context // 4),
    )
    if prompt + answer > context:
        raise UsageError(
            tr("{tokens} tokens do not fit into the context of {context}", tokens=prompt + answer, context=context),
            tr("ask for less: --input-len, --output-len"),
        )
    own = {"ttft": bench.target.settings.target_ttft, "tpot": bench.target.settings.target_itl}
    goals = wishes.goals or {**GOALS, **{name: seconds(text) * 1000 for name, text in own.items() if text}}
    step = QUICK_SECONDS if wishes.is_quick else SECONDS
    return Load(prompt, answer, goals, step, secrets.randbelow(1 << 30))


def _context(bench: Bench) -> int:
    return int(apitest.models(bench.subject).figures["context"])


def _served(bench: Bench, cache_tokens: int | None) -> Served:
    target = bench.target
    engine, settings = target.engine, target.settings
    torch = next((line.partition("==")[2] for line in engine.packages if line.startswith("torch==")), "")
    most = bench.flags.get("--max-num-seqs", "")
    return Served(
        service="" if bench.is_trial else settings.service,
        model=target.model.id,
        commit=target.model.commit,
        engine=family_named(engine.family).title,
        version=engine.vllm_version,
        kind=engine.kind,
        engine_id=engine.id,
        torch=torch,
        python=engine.python.name,
        tool=__version__,
        settings={
            named(name): without_password(to_text(name, value))
            for name, about in FIELDS.items()
            if (value := getattr(settings, name)) != about.default
        },
        context=_context(bench),
        most_at_once=int(most) if most.isdecimal() else None,
        engines=max(1, len(target.replicas)),
        through_gateway=bool(target.replicas),
        cache_tokens=cache_tokens,
    )


def _machine(target: Target, facts: Facts) -> Machine:
    usable = usable_gpus(facts, target.engine.kind)
    taken = [gpu for tenant in facts.tenants for gpu in where(tenant, usable)]
    own = {gpu.uuid for gpu in target.gpus}
    return Machine(
        cpu=facts.cpu,
        cpus=os.cpu_count() or 1,
        memory=facts.memory_total,
        kernel=os.uname().release,
        gpus=tuple(
            f"{gpu.name}, {size(gpu.memory_total)}, {gpu.driver}" for gpu in usable if gpu.uuid in own or not own
        ),
        gpus_free=sum(gpu not in taken and not gpu.holders for gpu in usable),
    )
