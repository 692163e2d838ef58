"""From what is asked to what is wanted on this host: refuse what cannot work, settle engine, model and keys."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from installer.airgap import bundled
from installer.base.errors import Refused, UsageError
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import Layout
from installer.base.report import Report
from installer.checks import facts, placement, preflight
from installer.checks.placement import Choice
from installer.checks.preflight_toolkit import fits_wheels
from installer.checks.tenants import ports_of_replicas, visible, visible_devices, with_port, with_tenants
from installer.families.known import family_of
from installer.flow import adapters, advice
from installer.flow.local import check_local
from installer.flow.request import KeyChoice, Request
from installer.flow.wanted import Wanted
from installer.forms.podman import images
from installer.forms.venv import engines, toolkit
from installer.model import formats, profiles, trust
from installer.model.model_about import About
from installer.model.model_config import Config
from installer.spec import keys
from installer.spec.engine import Engine
from installer.spec.facts import Facts, Gpu, Interpreter, Process
from installer.spec.model import Model
from installer.spec.profile import Profile
from installer.spec.settings import FIELDS, PODMAN, Settings
from installer.spec.state import State
from installer.spec.target import Place, Replica, Target
from installer.spec.toolkit import NONE, WHEELS, Toolkit
from installer.spec.values import AUTO, AUTO_TOOLKIT, USEFUL_CONTEXT
from installer.spec.vendors import AMD
from installer.units import monitoring
from installer.units.gateway import needs_gateway
from installer.units.graph import handle
from installer.units.keyring import unit_keys
from installer.weights import models
from installer.weights.about import of_model

OF_GATEWAY = ("replicas", "tls", "tls_cert", "fallback_url", "gateway_hosts")  # settings for which it is needed


@dataclass(frozen=True)
class Resolved:
    want: Wanted
    new_key: str | None  # a default key that nobody has seen yet
    facts: Facts
    about: About | None = None  # what the model's small files say, where they were looked at


def resolve(
    request: Request, state: State, host: Host, report: Report, *, for_real: bool, throwaway: bool = False
) -> Resolved:
    """A plan is not for real: it makes no keys and needs no privilege; a throwaway server needs no systemd either."""
    settings = with_port(request.settings, state, host)
    profiles.check_names(settings)
    family_of(settings).check_words(settings, report.warn)
    _check_form(request, settings, throwaway=throwaway)
    _check_useful(settings)
    layout = Layout(settings.service)
    seen = _look(request, settings, host, layout)
    settings = advice.with_model(settings, seen, report)
    if not for_real:
        seen = dataclasses.replace(seen, is_root=True)
        if seen.peers and settings.group_key_file is None:  # it comes with the change, and only root could see it
            seen = dataclasses.replace(seen, peers=dataclasses.replace(seen.peers, unfit=""))
    if request.bundle:
        settings, seen = bundled.fitting(request.bundle, settings, seen)
    if throwaway:
        seen = dataclasses.replace(seen, systemd=preflight.MINIMUM_SYSTEMD, systemd_is_pid1=True, sysusers=True)
        if settings.cuda_toolkit == AUTO_TOOLKIT:  # nobody waits for kernels of a server that ends with its answer
            settings = dataclasses.replace(settings, cuda_toolkit=NONE)
    problems = preflight.problems(settings, seen, layout)
    if fatal := [problem for problem in problems if problem.fatal]:
        raise preflight.refuse(fatal)
    for problem in problems:
        report.warn(str(problem))
    kind = preflight.choose_engine(settings, seen)
    settings, seen, choice = _place(settings, seen, kind, layout, report)
    interpreter = preflight.choose_interpreter(settings, seen, kind)
    assert interpreter is not None, "preflight reports a missing interpreter"
    model = _model(request, settings, state, host, report)
    check_local(model, settings, host)
    _check_senses(model, kind, host)
    look_at_model = partial(of_model, model, host, settings, report, request.caches)
    profile, about = None if request.new_commit else _known_profile(settings, model, kind, state), None
    if profile is None:
        about = bundled.about(request.bundle) if request.bundle else None
        about = about or look_at_model()
        adapters.check_is_model(about, model)
        profile = _profile(settings, model, kind, seen, about, report)
    report.note(profile.describe())
    beside = adapters.resolve(request, settings, state, host, report)
    engine = _engine(request, settings, kind, interpreter, state, host, report)
    held, probe, new_key = _keys(host, layout, state, request.keys, make=for_real)
    config = partial(_config, about, look_at_model)
    compiler = None if engine.image else _toolkit(settings, engine, seen, state.proved, config, report)
    place = Place(seen.peers.ranks[0], seen.peers.interface) if seen.peers else None
    behind = _replicas(settings, choice, state, host, report) if place is None or place.rank == 0 else ()
    ours = seen.gateway.addresses if seen.gateway else ()
    others = tuple(address for address in settings.gateway_hosts if address not in ours)
    target = Target(settings, engine, model, held, profile, choice.placed, compiler, behind, beside, place, others)
    is_first = state.proved is None
    want = Wanted(
        target, layout, probe, request.bundle, request.former, request.environment, request.caches, is_first=is_first
    )
    return Resolved(want, new_key, seen, about)


def _check_useful(settings: Settings) -> None:
    """vLLM starts with any context; what its clients ask has to fit into it."""
    tokens = settings.max_model_len
    if tokens is not None and tokens < USEFUL_CONTEXT:
        raise UsageError(
            tr(
                "a context of {tokens} tokens is too small to chat in: the template's own words may fill it",
                tokens=tokens,
            ),
            tr("ask for {least} at least; nothing was changed", least=USEFUL_CONTEXT),
        )


def _check_form(request: Request, settings: Settings, *, throwaway: bool) -> None:
    """A container is one engine of vLLM at a port of its own: the rest is said, and not half done."""
    if settings.runtime != PODMAN:
        return
    behind = [FIELDS[name].names[0] for name in OF_GATEWAY if getattr(settings, name) != getattr(Settings, name)]
    cannot = {
        tr("what needs the gateway ({settings})", settings=", ".join(behind)): bool(behind),
        tr("other hosts beside this one (GROUP_HOSTS)"): bool(settings.group_hosts),
        tr("SGLang (ENGINE_FAMILY)"): settings.engine_family != Settings.engine_family,
        tr("GPUs of AMD (ENGINE=rocm)"): settings.engine == AMD.kind,
        tr("a compiler chosen by CUDA_TOOLKIT"): settings.cuda_toolkit != Settings.cuda_toolkit,
        tr("a key in clear in the unit"): request.keys.plain,
        tr("a throwaway server"): throwaway,
    }
    if asked := [what for what, is_asked in cannot.items() if is_asked]:
        raise UsageError(
            tr("RUNTIME=podman cannot have {what}", what=tr("; ").join(asked)),
            tr("leave that out, or choose RUNTIME=venv"),
        )


def _look(request: Request, settings: Settings, host: Host, layout: Layout) -> Facts:
    """The host with our services on it, as it will be when an old deployment has made way."""
    seen = with_tenants(facts.gather(host, settings, layout), host, layout)
    if request.environment or request.former:  # its variables become the drop-in, in the place of those that are there
        seen = dataclasses.replace(seen, visible=visible(dict(request.environment)))
    return _without(request.former.unit, seen, layout) if request.former and request.former.active else seen


def _without(unit: str, seen: Facts, layout: Layout) -> Facts:
    """The host when this unit has stopped: what it holds is what the service will have, on the same GPUs."""
    holder = None if seen.port_holder and seen.port_holder.unit == unit else seen.port_holder
    gpus = tuple(dataclasses.replace(gpu, holders=_handed_over(gpu, unit, layout)) for gpu in seen.gpus)
    return dataclasses.replace(seen, port_holder=holder, gpus=gpus, service_runs=True)


def _handed_over(gpu: Gpu, unit: str, layout: Layout) -> tuple[Process, ...]:
    return tuple(dataclasses.replace(h, unit=layout.unit_name) if h.unit == unit else h for h in gpu.holders)


def _place(
    settings: Settings, seen: Facts, kind: str, layout: Layout, report: Report
) -> tuple[Settings, Facts, Choice]:
    """The GPUs for the service, by uuid in its settings; what follows knows of no others."""
    choice = placement.choose(settings, seen, kind, layout)
    if kind == "cpu":
        return settings, seen, choice
    if choice.by_hand:
        report.note(tr("GPUs: chosen by hand, {what}", what=choice.by_hand))
    elif choice.gpus:
        report.note(tr("GPUs: {gpus}", gpus=tr(", ").join(map(str, choice.gpus))))
    if settings.gpus != AUTO and choice.named:
        settings = dataclasses.replace(settings, gpus=tuple(gpu.uuid for gpu in choice.gpus))
    return settings, dataclasses.replace(seen, gpus=choice.gpus), choice


def _warn_of_drop_ins(layout: Layout, state: State, host: Host, report: Report) -> None:
    """What an admin wrote for the one engine would be the gateway's."""
    folder = handle(layout).drop_ins
    is_new = state.proved is not None and not state.proved.replicas
    if is_new and any(path.suffix == ".conf" for path in host.children(folder)):
        report.warn(
            tr(
                "{folder} is for the gateway from now on; what is for the engines belongs into {other}",
                folder=folder, other=layout.replicas_drop_ins,
            )
        )  # fmt: skip


def _replicas(settings: Settings, choice: Choice, state: State, host: Host, report: Report) -> tuple[Replica, ...]:
    """One whose own drop-in chooses its GPUs is shown them all, as a single engine would be."""
    if not needs_gateway(settings):
        return ()
    layout = Layout(settings.service)
    _warn_of_drop_ins(layout, state, host, report)
    each = zip(ports_of_replicas(settings, state, host), choice.of_each(settings), strict=True)
    return tuple(
        Replica(number, port, () if visible_devices(host, layout, number) else gpus)
        for number, (port, gpus) in enumerate(each, 1)
    )


def _model(request: Request, settings: Settings, state: State, host: Host, report: Report) -> Model:
    layout = Layout(settings.service)
    if request.bundle:
        return bundled.model(request.bundle, settings, host, layout)
    known = None if request.new_commit else known_commit(settings, state)
    return models.resolve(settings, host, layout, known, report, request.caches)


def _engine(
    request: Request, settings: Settings, kind: str, python: Interpreter, state: State, host: Host, report: Report
) -> Engine:
    if request.bundle:
        return bundled.engine(request.bundle, settings, python, host)
    if settings.runtime == PODMAN:
        return images.resolve(settings, kind, python.path, host)
    proved = state.proved.engine if state.proved else None
    if request.resolve:
        return engines.newest(settings, kind, python.path, host, report)
    if request.new_packages and not settings.offline:
        return engines.offered(settings, kind, python.path, host, report)
    return engines.resolve(settings, kind, python.path, host, report, proved)


def _toolkit(
    settings: Settings, engine: Engine, seen: Facts, proved: Target | None, config: Callable[[], Config], report: Report
) -> Toolkit | None:
    """For the GPUs that were chosen, of which alone `seen` tells; a container brings what it compiles with."""
    if settings.cuda_toolkit == AUTO_TOOLKIT:
        mode = _toolkit_by_itself(settings, engine, seen, proved, config)
        settings = dataclasses.replace(settings, cuda_toolkit=mode)
    chosen = toolkit.choose(settings, engine, seen.gpus, seen.nvcc, lambda: config().is_mla)
    compiling = family_of(settings).compiling
    if chosen and compiling:
        report.note(compiling.describe(chosen))
    return chosen


def _toolkit_by_itself(
    settings: Settings, engine: Engine, seen: Facts, proved: Target | None, config: Callable[[], Config]
) -> str:
    """A compiler where it works and was measured to pay; without asking anew, where the model was proved with one."""
    compiling, before = family_of(settings).compiling, proved.settings if proved else None
    if proved and proved.toolkit and before and before.model == settings.model and before.cuda_toolkit == AUTO_TOOLKIT:
        pays = proved.toolkit.mode == WHEELS
    else:
        found = toolkit.capabilities(seen.gpus)
        pays = compiling is not None and compiling.pays(found, lambda: config().is_dense_fp8)
    works = settings.tensor_parallel_size == 1 and toolkit.has_compiler(engine) and fits_wheels(settings, seen)
    return WHEELS if pays and works else NONE


def _config(about: About | None, look_at_model: Callable[[], About]) -> Config:
    return Config.of((about or look_at_model()).config)


def _check_senses(model: Model, kind: str, host: Host) -> None:
    """Said before tens of gigabytes are fetched for nothing."""
    preprocessor = "preprocessor_config.json"
    known = any(file.name == preprocessor for file in model.files) or host.exists(model.path / preprocessor)
    if kind == "cpu" and known:
        raise Refused(
            tr(
                "{model} takes images, video or sound, for which the packages of the CPU engine have no support",
                model=model.id,
            ),
            tr("choose a model for text alone, such as --model Qwen/Qwen3-4B or builtin:tiny, or a host with a GPU"),
        )


def known_commit(settings: Settings, state: State) -> str | None:
    """A model once resolved stays at its commit until its name or revision is changed."""
    before = state.proved
    if before and (before.settings.model, before.settings.revision) == (settings.model, settings.revision):
        return before.model.commit
    return None


def _known_profile(settings: Settings, model: Model, kind: str, state: State) -> Profile | None:
    """What was proved with a commit stays with it, whatever a newer release of this tool would choose."""
    before = state.proved
    if before is None or not model.commit or not before.profile.family:
        return None
    then, now = (
        (
            *(s.tool_call_parser, s.reasoning_parser, s.allow_pickle, s.trust_remote_code),
            *(s.engine_family, s.vllm_args, s.vllm_version, s.sglang_args, s.sglang_version),
        )
        for s in (before.settings, settings)
    )
    same = (before.model.path, before.engine.kind, then) == (model.path, kind, now)
    return before.profile if same else None


def _profile(settings: Settings, model: Model, kind: str, seen: Facts, about: About, report: Report) -> Profile:
    """The profile by the model's own files, unless they say that it cannot be run here."""
    problems = [*trust.check_trust(about, settings), *formats.check_format(about, model.id, kind, settings, seen)]
    if any(problem.fatal for problem in problems):
        raise preflight.refuse(problems)
    for problem in problems:
        report.warn(str(problem))
    family = family_of(settings)
    found = family.in_own_words(profiles.of(about, settings.vllm_args))
    for need in found.needs:
        report.note(tr(need))
    return profiles.chosen(found, settings.tool_call_parser, settings.reasoning_parser)


def _keys(
    host: Host, layout: Layout, state: State, choice: KeyChoice, *, make: bool
) -> tuple[tuple[keys.Key, ...], str, str | None]:
    """The unit's keys, completed: (all keys, the probe key, a new default key that nobody has seen yet)."""
    cut_off = state.pending and state.proved
    ours = str(layout.unit) in state.owned  # what another's unit has for keys is not read here
    in_force = state.proved.keys if cut_off and state.proved else unit_keys(host, layout) if ours else []
    held = {key.name: key for key in keys.named_apart([*in_force, *choice.held])}
    if not state.key_shown and not cut_off and not choice.held:
        held.pop(keys.DEFAULT, None)  # it was made by a first run that was cut off before anybody saw it
    probe = (host.read(layout.probe_key) or "").strip()
    if not probe and choice.held:  # a unit that is adopted again has its digest among its keys
        probe = (host.read(layout.ejected_probe_key) or "").strip()
    if probe:
        held[keys.PROBE] = keys.Key(keys.PROBE, keys.digest(probe))  # the running watcher asks with it
    else:
        probe = keys.generate("probe") if make else keys.TO_BE_MADE
        held[keys.PROBE] = keys.Key(keys.PROBE, keys.digest(probe) if make else keys.TO_BE_MADE)
    new = None
    if choice.given:
        held[keys.DEFAULT] = keys.Key(keys.DEFAULT, keys.digest(choice.given))
        named = [keys.Key(keys.DEFAULT, keys.digest(text)) for text in choice.further]
        held = {key.name: key for key in keys.named_apart([*held.values(), *named])}
    elif not any(name != keys.PROBE for name in held):
        new = keys.generate(layout.service) if make else keys.TO_BE_MADE
        held[keys.DEFAULT] = keys.Key(keys.DEFAULT, keys.digest(new) if make else keys.TO_BE_MADE)
    if state.proved is None and (watching := monitoring.key(host)):
        held.setdefault(watching.name, watching)
    if choice.plain and (shown := choice.given or new):
        held[keys.DEFAULT] = dataclasses.replace(held[keys.DEFAULT], plain=shown)
    return keys.in_order(held.values()), probe, new
