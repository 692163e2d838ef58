"""What doctor looks at last: the service as it runs, or what its journal says of why it does not."""

from __future__ import annotations

from collections.abc import Iterator

from installer.base.language import tr
from installer.diagnosis import signatures
from installer.diagnosis.finding import FAULT, NOTE, Finding
from installer.diagnosis.scene import Scene
from installer.families.known import family_counting, root_line_in
from installer.runtime.vllm_seen import QUESTIONS
from installer.runtime.vllm_text import one_line
from installer.units.api import Api, NoAnswer, gauge
from installer.units.render import DIGEST_VARIABLE
from installer.units.syntax import environment
from installer.units.systemd import running_process

BUSY = "busy"


def check_port(scene: Scene) -> Iterator[Finding]:
    settings = scene.settings
    holder = scene.custody.stranger(settings.host, settings.port) if scene.number else scene.facts.port_holder
    if holder is None or holder.unit == scene.member.name:
        return
    if not holder.pid and (scene.active == "active" or not scene.is_root):
        return  # only root sees whose it is; it may be the service itself
    find = f"sudo ss -ltnp 'sport = :{settings.port}'"
    other = settings.port + 1 if settings.port < 65535 else 8000
    yield Finding(
        "port-in-use",
        tr("port {port} is taken by {holder}", port=settings.port, holder=holder),
        tr("a listener on port {port} that is not {unit}", port=settings.port, unit=scene.member.name),
        (holder.how_to_stop if holder.pid else find, *(() if scene.number else (f"{scene.deploy} --port {other}",))),
    )


def check_journal(scene: Scene) -> Iterator[Finding]:
    """Why it does not serve, from the last run that says so, as far back as systemd tried by itself."""
    if scene.active in ("active", "inactive", ""):
        return
    restarts = int(scene.unit.get("NRestarts") or 0)
    for lines in (scene.last_start, *scene.runs[1 : restarts + 1]):
        found = [f for f in signatures.explain(lines, scene.service) if f.severity == FAULT]
        if found:
            yield from found
            return


def check_state(scene: Scene) -> Iterator[Finding]:
    """What systemd says of the unit; the cause, if it is known, was named before."""
    unit, look = scene.member.stem, f"sudo journalctl -u {scene.member.stem} -n 200"
    said = one_line(f"{scene.active} ({scene.unit.get('SubState', '')}) {scene.stage}".strip())
    if any(replica.serves for replica in scene.replicas):
        return  # what the gateway does then has checks of its own
    if scene.has_failed:
        root = root_line_in(scene.last_start) if scene.is_root else ""
        result = scene.unit.get("Result", "unknown")
        yield Finding(
            "service-failed",
            tr("the service failed ({result})", result=result),
            one_line(root or said),
            (look, f"sudo systemctl restart {unit}"),
        )
    elif scene.active == "inactive" and scene.unit_text:
        if not (scene.whole and scene.whole.active == "inactive"):  # else with the whole
            yield Finding("service-stopped", tr("the service is stopped"), said, (f"sudo systemctl start {unit}",))
    elif scene.standing and scene.standing.waits:
        why = scene.standing.stage + (f"; {scene.standing.lost}" if scene.standing.lost else "")
        yield Finding("group-broken", tr("the hosts of its group are not all there"), one_line(why), (look,))
    elif scene.holding:
        cause = tr("it does not serve yet: {callers}", callers=scene.holding.words)
        yield Finding("callers-wait", cause, said, (f"sudo vllm-install status {scene.service} --watch",), NOTE)
    elif scene.active == "reloading":
        cause = tr("the service is handed over to its successor, and serves meanwhile")
        yield Finding("service-changing", cause, said, (f"systemctl status {unit}",), NOTE)
    elif scene.active in ("activating", "deactivating"):
        yield Finding(
            "service-changing", tr("the service is starting or stopping"), said, (f"systemctl status {unit}",), NOTE
        )
    elif scene.active == "active" and not scene.is_gateway and scene.has_api:
        yield from _check_answer(scene)


def _check_answer(scene: Scene) -> Iterator[Finding]:
    """`/health` is no witness: a hung engine answers it."""
    restart = f"sudo systemctl restart {scene.member.stem}"
    api = scene.api()
    try:
        models = api.ask("GET", "/v1/models" if scene.probe_key else "/health")
    except NoAnswer as error:
        yield Finding("no-answer", tr("the service runs, but does not answer"), one_line(str(error)), (restart,))
        return
    if scene.probe_key and models.status == 401:
        cause = tr("the running service does not know the key with which it is watched")
        yield Finding("probe-key-refused", cause, "GET /v1/models: 401", (restart,))
    elif models.status == 503:
        yield Finding("engine-died", tr("the engine died"), tr("{url} answers 503", url=api.url), (restart,))
    elif scene.probe_key and (silent := _silence(api, models.json())) and silent != BUSY:
        look = f"sudo journalctl -u {scene.member.stem} -n 200"
        yield Finding("engine-hung", tr("the engine hangs: it answers no request"), one_line(silent), (restart, look))


def _silence(api: Api, models: dict[str, object]) -> str:
    """Why a smallest request was not answered; "" where it was, BUSY where the engine works on other ones."""
    data = models.get("data")
    model = data[0].get("id") if isinstance(data, list) and data and isinstance(data[0], dict) else ""
    before = _progress(api)
    said = ""
    for path, question in QUESTIONS:
        try:
            answer = api.ask("POST", path, {"model": model, **question})
        except NoAnswer as error:
            after = _progress(api)
            return BUSY if after and after != before else str(error)
        if answer.status == 200:
            return ""
        said = said or f"POST {path}: {answer.status} {answer.words}"
        if answer.status not in (400, 404, 405, 501):
            return said
    return said


def _progress(api: Api) -> list[str]:
    try:
        answer = api.ask("GET", "/metrics")
    except NoAnswer:
        return []
    text = answer.body.decode(errors="replace")
    return family_counting(text).metrics.progress.findall(text) if answer.status == 200 else []


# Notes on a service that serves


def check_manager(scene: Scene) -> Iterator[Finding]:
    """What is on disk against what runs."""
    member = scene.member
    unit = member.stem
    if scene.unit.get("NeedDaemonReload") == "yes":
        command = f"sudo systemctl daemon-reload && sudo systemctl restart {unit}"
        yield Finding(
            "unit-not-loaded", tr("systemd has not read the unit's changes"), "NeedDaemonReload=yes", (command,), NOTE
        )
    proved = scene.state.proved if scene.state else None
    if proved and scene.is_root and scene.active == "active":
        process = running_process(scene.host, member)
        if process and process.digest != environment(scene.unit_text or "").get(DIGEST_VARIABLE, ""):
            cause = tr("the running process was started from another unit than the one on disk")
            yield Finding(
                "restart-due", cause, tr("process {pid}", pid=process.pid), (f"sudo systemctl restart {unit}",), NOTE
            )
    if proved and scene.unit_text and not scene.number and not scene.host.exists(member.wants_link):
        yield Finding(
            "not-enabled", tr("the service does not start at boot"),
            tr("{path}: no such file", path=member.wants_link),
            (f"sudo systemctl enable {unit}",), NOTE,
        )  # fmt: skip


def check_restarts(scene: Scene) -> Iterator[Finding]:
    """It serves again, but systemd had to help: why, as far as the run before tells."""
    restarts = int(scene.unit.get("NRestarts") or 0)
    if scene.active != "active" or restarts == 0:
        return
    found = [f for lines in scene.runs[1:2] for f in signatures.explain(lines, scene.service) if f.severity == FAULT]
    cause = tr("systemd restarted the service {count} times by itself", count=restarts)
    evidence = found[0].evidence if found else f"NRestarts={restarts}"
    commands = found[0].commands if found else (f"sudo journalctl -u {scene.member.stem} -n 500",)
    yield Finding("restarted-by-itself", cause, evidence, commands, NOTE)


def check_slowness(scene: Scene) -> Iterator[Finding]:
    """What makes a start slow, from the log of this one."""
    if scene.active != "active":
        return
    yield from (f for f in signatures.explain(scene.last_start, scene.service) if f.severity == NOTE)


def check_load(scene: Scene) -> Iterator[Finding]:
    """Requests that wait: for want of cache, or only because a limit says so."""
    if not scene.serves or not scene.probe_key or not scene.has_api:
        return
    try:
        text = scene.api(5.0).ask("GET", "/metrics").body.decode(errors="replace")
    except NoAnswer:
        return
    names = family_counting(text).metrics
    waiting, running, used = gauge(text, names.waiting), gauge(text, names.running), gauge(text, names.cache_used)
    if not waiting or used is None or running is None:
        return
    evidence = tr(
        "{waiting:g} requests wait, {running:g} run, the cache is {share:.0%} full",
        waiting=waiting,
        running=running,
        share=used,
    )
    if used >= 0.9:
        commands = (
            f"{scene.deploy} --gpu-memory-utilization 0.95",
            f"{scene.deploy} -- --kv-cache-dtype fp8",
            f"{scene.deploy} --context {max(1024, (scene.settings.max_model_len or 2048) // 2)}",
        )
        yield Finding("cache-full", tr("requests wait for room in the cache"), evidence, commands, NOTE)
    elif used < 0.5 and running:
        more = f"{scene.deploy} -- --max-num-seqs {int(2 * running)}"
        cause = tr("requests wait although the cache is half empty: a limit on requests at once leaves the GPU idle")
        yield Finding("limit-too-low", cause, evidence, (more,), NOTE)
