"""What doctor looks at first: the host below the service. Drivers, device nodes, disks, firewall."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from installer.base.host import Host
from installer.base.language import tr
from installer.base.report import size
from installer.base.sizes import GIB
from installer.checks.facts import probe_disk
from installer.checks.placement import chosen_by_hand, describe
from installer.checks.tenants import visible_devices
from installer.diagnosis import signatures
from installer.diagnosis.doctor_gpus import since
from installer.diagnosis.finding import FAULT, NOTE, Finding
from installer.diagnosis.scene import Scene
from installer.families.known import family_of
from installer.forms.venv.engines import BYTES_WITHOUT_TORCH, installed_bytes
from installer.runtime.vllm_text import one_line
from installer.spec.toolkit import NONE
from installer.spec.vendors import NVIDIA, of_kind
from installer.units import journal

ALMOST_FULL = 64 << 20
LOW = GIB  # as the alert has it
ELSEWHERE = {
    "not-root",
    "driver-broken",
    "no-systemd",
    "port-in-use",
    "gpu-gone",
    "gpus-by-hand",
    "haproxy-missing",
}  # have a check of their own


def check_systemd(scene: Scene) -> Iterator[Finding]:
    yield from _problems(scene, {"no-systemd"})


def check_driver(scene: Scene) -> Iterator[Finding]:
    error = scene.facts.nvidia_error
    if not error or of_kind(_kind(scene)) is None:
        return
    known = signatures.recognise(error, scene.service, signatures.DRIVER)
    if known:
        yield known
    else:
        yield from _problems(scene, {"driver-broken"})


def check_nodes(scene: Scene) -> Iterator[Finding]:
    """The sandbox can only hand in what exists before the service starts."""
    if _kind(scene) != NVIDIA.kind or not scene.host.exists(Path(NVIDIA.driver)):
        return
    missing = [node for node in NVIDIA.shared_nodes if not scene.host.exists(Path(node))]
    if missing:
        yield Finding(
            "device-nodes-missing",
            tr("the driver is loaded, but the GPU's device nodes do not exist"),
            tr("missing: {names}", names=", ".join(missing)),
            (f"sudo systemctl restart vllm-nvidia-nodes.service {scene.service}", "sudo nvidia-modprobe -u -c 0"),
        )


def check_gpus(scene: Scene) -> Iterator[Finding]:
    """Whether the GPUs that the service was given are there, and are those that it sees."""
    proved = scene.state.proved if scene.state else None
    if proved is None or of_kind(proved.engine.kind) is None or scene.facts.nvidia_error:
        return
    here = {gpu.uuid: gpu for gpu in scene.facts.gpus}
    for placed in proved.gpus:
        gpu = here.get(placed.uuid)
        if gpu is None:
            cause = tr("the GPU {gpu} is not on this host", gpu=placed)
            evidence = tr("this host has {gpus}", gpus=describe(scene.facts.gpus) or "-")
            yield Finding("gpu-gone", cause, evidence, (f"{scene.deploy} --gpus auto", "sudo dmesg | grep -i xid"))
        elif placed.node and gpu.node != placed.node:
            cause = tr("{gpu} has another device node than before, which the sandbox does not let in", gpu=gpu)
            evidence = tr("{before} before, {now} now", before=placed.node, now=gpu.node or "-")
            yield Finding("gpu-renumbered", cause, evidence, (scene.deploy,))


def check_choice(scene: Scene) -> Iterator[Finding]:
    """Whether somebody else chooses them."""
    proved = scene.state.proved if scene.state else None
    if proved is None:
        return
    visible = visible_devices(scene.host, scene.layout, scene.number)
    if by_hand := chosen_by_hand(proved.settings, visible, proved.engine.kind):
        yield _by_hand(scene, "=".join(by_hand), shut_out=bool(proved.of(scene.number).gpus))


def _by_hand(scene: Scene, what: str, *, shut_out: bool) -> Finding:
    """A unit that names its GPUs lets no others in; the next deploy leaves the choice to the one who made it."""
    cause = (
        tr("{what}, set by hand, wins over GPUS, but the sandbox lets in other GPUs", what=what)
        if shut_out
        else tr("{what}, set by hand, wins over GPUS", what=what)
    )
    undo = f"sudo systemctl edit {scene.member.stem}"
    return Finding("gpus-by-hand", cause, str(scene.member.drop_ins), (scene.deploy, undo), FAULT if shut_out else NOTE)


def check_disks(scene: Scene) -> Iterator[Finding]:
    layout = scene.layout
    for target in (layout.cache_dir, layout.run_dir, layout.state_dir, layout.opt, layout.hub):
        disk = probe_disk(scene.host, target)
        if disk.free < min(ALMOST_FULL, disk.total // 50) and not disk.read_only:
            yield Finding(
                "disk-full",
                tr("the disk that holds {target} is full", target=target),
                tr("{free} of {total} are free", free=size(disk.free), total=size(disk.total)),
                (f"sudo du -xh --max-depth=2 {disk.path} | sort -h | tail", "sudo vllm-install prune"),
            )
            return


def check_low(scene: Scene) -> Iterator[Finding]:
    """A disk that is not full, but soon will be: usage, downloads and caches go on growing."""
    layout = scene.layout
    for target in (layout.usage_dir, layout.state_dir, layout.opt, layout.hub):
        disk = probe_disk(scene.host, target)
        # A full one is said above, but for that of usage, without which it serves.
        is_said = target != layout.usage_dir and disk.free < min(ALMOST_FULL, disk.total // 50)
        if disk.free < min(LOW, disk.total // 50) and not is_said and not disk.read_only:
            yield Finding(
                "disk-low",
                tr("the disk that holds {target} is almost full", target=target),
                tr("{free} of {total} are free", free=size(disk.free), total=size(disk.total)),
                (f"sudo du -xh --max-depth=2 {disk.path} | sort -h | tail", "sudo vllm-install prune"),
                NOTE,
            )
            return


def check_haproxy(scene: Scene) -> Iterator[Finding]:
    yield from _problems(scene, {"haproxy-missing"})


def check_fitness(scene: Scene) -> Iterator[Finding]:
    """Whatever else deploy would refuse this host for."""
    yield from _problems(scene, {problem.id for problem in scene.problems} - ELSEWHERE)


def check_kernel(scene: Scene) -> Iterator[Finding]:
    """What else the kernel said: of memory, and of the driver as a whole."""
    lines = [entry.text for entry in journal.entries(scene.host, 2000, *since(scene))]
    for finding in signatures.explain(lines, scene.service, signatures.KERNEL):
        if finding.id != "killed-for-memory" or re.search(r"VLLM|vllm|python", finding.evidence):
            yield finding


def check_toolkit(scene: Scene) -> Iterator[Finding]:
    """What an engine does without where it may use no compiler: no fault, but nobody would guess it."""
    proved = scene.state.proved if scene.state else None
    compiling = family_of(scene.settings).compiling
    if compiling and proved and proved.toolkit and proved.toolkit.mode == NONE:
        yield Finding(
            "no-cuda-toolkit",
            tr("{what}; on an H200 a compiler made an FP8 model faster and a bf16 one not", what=tr(compiling.cost)),
            f"CUDA_TOOLKIT={scene.settings.cuda_toolkit}, CUDA_HOME={proved.toolkit.home}",
            (f"sudo vllm-install set CUDA_TOOLKIT=wheels --service {scene.service}",),
            NOTE,
        )


def check_space(scene: Scene) -> Iterator[Finding]:
    """Whether the next upgrade, which puts an engine beside the present one, would find room."""
    target = scene.state.proved.engine if scene.state and scene.state.proved else None
    needed = installed_bytes(target) if target else BYTES_WITHOUT_TORCH
    disk = probe_disk(scene.host, scene.layout.opt)
    if ALMOST_FULL <= disk.free < needed:
        used = scene.host.output("journalctl", "--disk-usage")
        free = tr("{free} of {total} are free", free=size(disk.free), total=size(disk.total))
        yield Finding(
            "disk-small",
            tr("the next upgrade needs {needed} on the disk that holds {path}", needed=size(needed), path=disk.path),
            f"{free}; {one_line(used) if used else tr('journal: unknown')}",
            ("sudo vllm-install prune", "sudo journalctl --vacuum-size=1G", f"sudo du -xh --max-depth=2 {disk.path}"),
            NOTE,
        )


def _problems(scene: Scene, wanted: Iterable[str]) -> Iterator[Finding]:
    for problem in scene.problems:
        if problem.id in wanted:
            severity = FAULT if problem.fatal else NOTE
            yield Finding(problem.id, problem.what, one_line(problem.why), (problem.remedy,), severity)


def _kind(scene: Scene) -> str:
    proved = scene.state.proved if scene.state else None
    return proved.engine.kind if proved else scene.settings.engine


# The firewall: only looked at, never changed


def check_firewall(scene: Scene) -> Iterator[Finding]:
    settings = scene.settings
    if settings.is_local:
        return
    port = settings.port
    verdict = _ufw(scene.host, port) or _firewalld(scene.host, port) or _nftables(scene.host, port)
    if verdict:
        sure, evidence, command = verdict
        cause = (
            tr("the firewall keeps other hosts from port {port}", port=port)
            if sure
            else tr(
                "the firewall drops what no rule lets in, and no rule names port {port}; other hosts may not reach it",
                port=port,
            )
        )
        yield Finding("firewall", cause, one_line(evidence), (command,), NOTE)


Verdict = tuple[bool, str, str] | None  # whether it is certain, what shows it, and what opens the port


def _ufw(host: Host, port: int) -> Verdict:
    shown = host.output("ufw", "status", "verbose")
    if "Status: active" not in shown:
        return None
    rules = [line for line in shown.splitlines() if re.match(rf"{port}(/tcp)?\s", line)]
    default = next((line for line in shown.splitlines() if line.startswith("Default:")), "")
    allowed = any(re.search(r"\b(ALLOW|LIMIT)\b", rule) for rule in rules)
    denied = [rule for rule in rules if re.search(r"\b(DENY|REJECT)\b", rule)]
    if denied or (not allowed and re.search(r"(deny|reject) \(incoming\)", default)):
        return bool(denied or not rules), "ufw: " + (denied or [default])[0], f"sudo ufw allow {port}/tcp"
    return None


def _firewalld(host: Host, port: int) -> Verdict:
    if not host.output("firewall-cmd", "--state") or host.output("firewall-cmd", f"--query-port={port}/tcp"):
        return None
    text = host.output("firewall-cmd", "--list-all")
    ranges = re.findall(r"(\d+)-(\d+)/tcp", text)
    if "target: ACCEPT" in text or any(int(low) <= port <= int(high) for low, high in ranges):
        return None
    opened = f"sudo firewall-cmd --permanent --add-port={port}/tcp && sudo firewall-cmd --reload"
    sure = not re.search(r"rich rules:\s*\S", text)
    return sure, f"firewalld: {' '.join(text.split())[:200]}", opened


def _nftables(host: Host, port: int) -> Verdict:
    shown = host.output("nft", "--json", "list", "ruleset")
    try:
        items = json.loads(shown)["nftables"] if shown else []
        chains = [item["chain"] for item in items if "chain" in item]
        rules = [item["rule"] for item in items if "rule" in item]
        bases = {(c["family"], c["table"], c["name"]): c for c in chains if c.get("hook") == "input"}
        for rule in rules:
            words = json.dumps(rule["expr"])
            names_port = re.search(rf'"dport".*"right": (?:{port}\b|.*\b{port}\b)', words)
            if names_port and ('"accept"' in words or '"jump"' in words or '"goto"' in words):
                return None
            if (
                names_port
                and (rule["family"], rule["table"], rule["chain"]) in bases
                and re.search("drop|reject", words)
            ):
                place = f"{rule['family']} {rule['table']} {rule['chain']}"
                command = f"sudo nft delete rule {place} handle {int(rule['handle'])}"
                return True, f"nftables: chain {place}: {words[:200]}", command
        closed = next((c for c in bases.values() if c.get("policy") == "drop"), None)
    except (ValueError, KeyError, TypeError):
        return None
    if closed is None:
        return None
    place = f"{closed['family']} {closed['table']} {closed['name']}"
    return (
        False,
        tr("nftables: chain {place} has policy drop", place=place),
        f"sudo nft insert rule {place} tcp dport {port} accept",
    )
