"""One service on one screen: the lines that `status` shows, and those of them that `watch` shows too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from installer.base.language import tr
from installer.base.report import size
from installer.diagnosis.finding import Finding
from installer.diagnosis.said import translated
from installer.families.known import family_named
from installer.look import soak as soaking
from installer.look.load import GpuUse, Sample
from installer.look.soak import SoakView
from installer.look.status import GroupView, MemberStatus, Status
from installer.spec.state import Event


def lines(status: Status) -> list[tuple[str, str]]:
    """The screen, as label and text."""
    return [
        (tr("service"), stage_line(status.service, status.active, status.stage)),
        *member_lines(status.members, status.gpus),
        *_group_lines(status.group),
        *([(tr("callers"), status.holding.words)] if status.holding else []),
        *_problem_lines(status.problem),
        (
            tr("since"),
            tr(
                "{time}; restarts by systemd: {restarts}; pid {pid}",
                time=status.since or "-",
                restarts=status.restarts,
                pid=status.pid or "-",
            ),
        ),
        (tr("at boot"), tr("started") if status.enabled else tr("not started")),
        (tr("model"), _model(status)),
        *(("" if number else tr("adapters"), one) for number, one in enumerate(status.adapters)),
        (tr("engine"), _engine(status)),
        *_compiling(status),
        (tr("context"), _context(status)),
        (tr("KV cache"), tr("{count} tokens", count=status.kv_tokens) if status.kv_tokens else "-"),
        (
            tr("listens on"),
            f"{status.address or '-'}" + ("" if status.listening else tr(" (it does not listen there)")),
        ),
        (tr("memory"), size(status.memory) if status.memory else "-"),
        *([(tr("GPUs"), tr("chosen by hand, {what}", what=status.gpus_by_hand))] if status.gpus_by_hand else []),
        *((f"GPU {number}", gpu_line(gpu)) for number, gpu in enumerate(status.gpus)),
        *([(tr("load"), load_line(status.load))] if status.load else []),
        (tr("keys"), tr(", ").join(status.keys) or "-"),
        *_change_lines(status.last_changes),
        *_soak_lines(status.soak),
        *_under_way_lines(status),
        *([(tr("unfinished"), tr("{what} was cut off; run it again", what=status.pending))] if status.pending else []),
    ]


def _under_way_lines(status: Status) -> list[tuple[str, str]]:
    if status.under_way is None:
        return []
    return [(tr("under way"), tr("{what}, {seconds} s", what=status.under_way, seconds=status.under_way_for))]


def _soak_lines(view: SoakView | None) -> list[tuple[str, str]]:
    found = soaking.lines(view) if view else []
    return [("" if number else tr("watched"), line) for number, line in enumerate(found)]


def stage_line(service: str, active: str, stage: str) -> str:
    now = tr("{state}, {stage}", state=active, stage=translated(stage)) if stage else active
    return tr("{what}: {why}", what=service, why=now)


def member_lines(members: tuple[MemberStatus, ...], gpus: tuple[GpuUse, ...]) -> list[tuple[str, str]]:
    """A line for each replica."""
    numbers = {gpu.uuid: str(number) for number, gpu in enumerate(gpus)}
    return [(tr("replica {number}", number=each.number), _member_line(each, numbers)) for each in members]


def _member_line(member: MemberStatus, numbers: Mapping[str, str]) -> str:
    stage = translated(member.stage)
    placed = tr(", ").join(numbers.get(uuid, uuid) for uuid in member.gpus)
    said = [
        tr("{state}, {stage}", state=member.active, stage=stage) if stage else member.active,
        member.address,
        tr("GPUs chosen by hand, {what}", what=member.gpus_by_hand) if member.gpus_by_hand else "",
        f"GPU {placed}" if placed and not member.gpus_by_hand else "",
        tr("restarts by systemd: {restarts}", restarts=member.restarts) if member.restarts else "",
        tr("gateway: {state}", state=member.gateway) if member.gateway not in (None, "UP") else "",
        load_line(member.load) if member.load else "",
    ]
    return tr("; ").join(filter(None, said))


def _group_lines(group: GroupView | None) -> list[tuple[str, str]]:
    if group is None:
        return []
    place = tr("host {number} of {count}", number=group.rank + 1, count=len(group.hosts))
    others = tr(", ").join(each for each in group.hosts if each != group.hosts[group.rank])
    said = [
        tr("{place}, {address}; with {others}", place=place, address=group.hosts[group.rank], others=others),
        translated(group.stage or ""),
        tr("it was broken: {why}", why=group.lost) if group.lost else "",
    ]
    return [(tr("group"), tr("; ").join(filter(None, said)))]


def _problem_lines(problem: Finding | None) -> list[tuple[str, str]]:
    if problem is None:
        return []
    return [(tr("because"), problem.cause), (tr("seen"), problem.evidence), (tr("do"), problem.commands[0])]


def _context(status: Status) -> str:
    if status.engine is None:
        return "-"  # nothing was proved yet, so nothing was chosen
    return tr("{count} tokens", count=status.context) if status.context else tr("chosen by vLLM")


def _engine(status: Status) -> str:
    if not status.engine or not status.engine_family:
        return "-"
    return f"{family_named(status.engine_family).title} {status.vllm_version} ({status.engine})"


def _compiling(status: Status) -> Iterator[tuple[str, str]]:
    compiling = family_named(status.engine_family or "").compiling
    if status.toolkit and compiling:
        yield "", compiling.describe(status.toolkit)


def _model(status: Status) -> str:
    if not status.commit:
        return status.model or "-"
    return tr("{model} at {commit}", model=status.model, commit=status.commit[:12])


def _change_lines(changes: tuple[Event, ...]) -> list[tuple[str, str]]:
    shown = [
        tr(
            "{when} {who}: {what}: {outcome}",
            when=change.when,
            who=change.who,
            what=change.what,
            outcome=translated(change.outcome),
        )
        for change in changes
    ]
    return [("" if number else tr("changes"), line) for number, line in enumerate(shown or ["-"])]


def gpu_line(gpu: GpuUse) -> str:
    busy = tr(", {busy} % busy", busy=gpu.busy) if gpu.busy is not None else ""
    name = f"{gpu.name} ({gpu.uuid})" if gpu.uuid else gpu.name
    if not gpu.memory_total:
        return name + busy
    used, total = size(gpu.memory_used), size(gpu.memory_total)
    return tr("{name}: {used} of {total}", name=name, used=used, total=total) + busy


def load_line(load: Sample) -> str:
    figures = [
        tr("{count:g} running", count=load.running) if load.running is not None else "",
        tr("{count:g} waiting", count=load.waiting) if load.waiting is not None else "",
        tr("cache {share:.0%} full", share=load.cache_used) if load.cache_used is not None else "",
    ]
    return tr(", ").join(filter(None, figures)) or "-"
