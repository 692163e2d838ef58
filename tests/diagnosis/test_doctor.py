"""doctor on hosts that cannot be booted here: GPUs that fail, kernels that complain, firewalls, no systemd at all."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from installer.base.assets import RUNTIME
from installer.base.host import Host
from installer.base.layout import Layout
from installer.diagnosis import doctor
from installer.diagnosis.doctor_running import check_journal, check_load, check_state
from installer.diagnosis.finding import Finding
from installer.diagnosis.scene import BEGINNINGS, Scene, look
from installer.look import status as view
from installer.look.screen import lines
from installer.look.status import status
from installer.model import builtin
from installer.spec.group import Group, Peer, save_group
from installer.spec.records import save_state
from installer.spec.settings import Settings
from installer.spec.state import State
from installer.spec.target import Place, Placed
from installer.spec.values import SPAN
from installer.units.api import Answer, Api
from installer.units.graph import handle
from installer.units.group import Standing
from installer.units.holding import Holding
from installer.units.journal import Entry, entries
from installer.units.render import fingerprint, render
from tests.kit.commands import check_ours
from tests.kit.targets import PROBE_KEY, target

SERVICE = "qwen3vl"
LAYOUT = Layout(SERVICE)


class Tree:
    """A host as files below a directory, with a service for an NVIDIA GPU on it."""

    def __init__(self, root: Path, *, kind: str = "cuda", gpus: tuple[Placed, ...] = ()) -> None:
        self.host = Host(root)
        root.chmod(0o755)
        made = dataclasses.replace(target(Settings(service=SERVICE), kind=kind), gpus=gpus)
        for path, file in render(made, LAYOUT).items():
            self.write(path, file.text)
        owned = {str(LAYOUT.unit): (fingerprint(self.host.read(LAYOUT.unit) or "", LAYOUT.unit, LAYOUT),)}
        save_state(self.host, LAYOUT, State(SERVICE, owned, proved=made))
        engine = LAYOUT.engines / made.engine.id
        self.write(engine / ".complete", "{}")
        self.link(engine / "bin/python", Path(sys.executable).resolve())
        for name, data in builtin.files().items():
            self.host.write(made.model.path / name, data.decode(errors="surrogateescape"))
        self.write(LAYOUT.probe_key, PROBE_KEY)
        self.write(Path("/etc/passwd"), f"{LAYOUT.user}:x:997:997::/:/bin/false\n")
        self.write(Path("/run/systemd/system/there"), "")
        self.command("systemctl", "echo systemd 257")
        self.command("systemd-sysusers", ":")
        self.journal()

    def write(self, path: Path, text: str, mode: int = 0o644) -> None:
        self.host.write(path, text, mode)

    def link(self, path: Path, to: Path) -> None:
        self.host.make_dir(path.parent)
        self.host.at(path).symlink_to(to)

    def command(self, name: str, script: str) -> None:
        self.write(Path("/usr/bin", name), f"#!/bin/sh\n{script}\n", 0o755)

    def journal(self, *kernel: str) -> None:
        """A journalctl that has these lines of the kernel's, and none of the service's."""
        lines = "\n".join(json.dumps({"MESSAGE": line}) for line in kernel)
        self.write(Path("/kernel"), lines + "\n" if lines else "")
        self.command("journalctl", f"case $* in *_TRANSPORT=kernel*) cat {self.host.at(Path('/kernel'))};; esac")

    def card(self) -> None:
        """An NVIDIA card on the bus, whatever its driver says."""
        device = Path("/sys/bus/pci/devices/0000:01:00.0")
        self.write(device / "vendor", "0x10de\n")
        self.write(device / "class", "0x030200\n")

    def findings(self) -> list[Finding]:
        return list(doctor.diagnose(look(SERVICE, self.host)).findings)

    def first(self) -> Finding:
        return self.findings()[0]

    def ids(self) -> list[str]:
        return [finding.id for finding in self.findings()]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


GPU = "570.86, 9.0, 81920, 0, GPU-1, 0, 00000000:01:00.0, Disabled, NVIDIA H100"


@pytest.mark.parametrize(
    ("says", "status", "expected", "helps"),
    [
        ("Failed to initialize NVML: Driver/library version mismatch", 18, "driver-mismatch", "sudo reboot"),
        ("Unable to determine the device handle for GPU0000:01:00.0: Unknown Error", 255, "gpu-off-bus", "sudo reboot"),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", 9, "driver-broken", "dmesg"),
    ],
)
def test_a_driver_that_fails_comes_first(tree: Tree, says: str, status: int, expected: str, helps: str) -> None:
    tree.card()
    tree.command("nvidia-smi", f'echo "{says}"; exit {status}')
    assert tree.first().id == expected
    assert says in tree.first().evidence
    assert helps in tree.first().commands[0]


def test_a_gpu_that_is_gone(tree: Tree) -> None:
    assert tree.first().id == "no-gpu-visible"


def test_a_driver_that_is_too_old(tree: Tree) -> None:
    tree.command("nvidia-smi", f"case $* in *query-gpu*) echo '{GPU}';; esac")
    assert "driver-too-old" in tree.ids()


GIVEN = Placed("GPU-1", "NVIDIA H100", "/dev/nvidia3")


def seen_on(root: Path, row: str, minor: int = 3) -> Tree:
    """A service that was given GPU-1, on a host whose GPU is that of this row."""
    tree = Tree(root, gpus=(GIVEN,))
    tree.command("nvidia-smi", f"case $* in *query-gpu*) echo '{row}';; esac")
    tree.write(Path("/proc/driver/nvidia/gpus/0000:01:00.0/information"), f"Device Minor: \t {minor}\n")
    return tree


def test_a_gpu_that_the_service_was_given_and_that_is_there(tmp_path: Path) -> None:
    assert not [name for name in seen_on(tmp_path, GPU).ids() if name.startswith("gpu")]


def test_the_gpu_of_the_service_went_away(tmp_path: Path) -> None:
    tree = seen_on(tmp_path, GPU.replace("GPU-1", "GPU-2"))
    finding = next(finding for finding in tree.findings() if finding.id == "gpu-gone")
    assert (finding.severity, finding.cause) == ("fault", "the GPU NVIDIA H100 (GPU-1) is not on this host")
    assert finding.evidence == "this host has 0: NVIDIA H100 (GPU-2)"
    check_ours(list(finding.commands))
    assert tree.ids().count("gpu-gone") == 1


def test_the_gpu_of_the_service_came_back_under_another_number(tmp_path: Path) -> None:
    finding = next(f for f in seen_on(tmp_path, GPU, minor=0).findings() if f.id == "gpu-renumbered")
    assert (finding.severity, finding.evidence) == ("fault", "/dev/nvidia3 before, /dev/nvidia0 now")


@pytest.mark.parametrize(("gpus", "severity"), [((GIVEN,), "fault"), ((), "note")])
def test_a_drop_in_that_chooses_gpus(tmp_path: Path, gpus: tuple[Placed, ...], severity: str) -> None:
    tree = Tree(tmp_path, gpus=gpus)
    tree.command("nvidia-smi", f"case $* in *query-gpu*) echo '{GPU}';; esac")
    tree.write(handle(LAYOUT).drop_ins / "mine.conf", "[Service]\nEnvironment=CUDA_VISIBLE_DEVICES=0\n")
    finding = next(finding for finding in tree.findings() if finding.id == "gpus-by-hand")
    assert finding.severity == severity
    assert "CUDA_VISIBLE_DEVICES=0, set by hand, wins over GPUS" in finding.cause


def test_device_nodes_that_were_not_made(tree: Tree) -> None:
    tree.write(Path("/proc/driver/nvidia/version"), "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Wed\n")
    assert tree.first().id == "device-nodes-missing"
    assert "/dev/nvidia-uvm" in tree.first().evidence
    assert "vllm-nvidia-nodes.service" in tree.first().commands[0]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("NVRM: Xid (PCI:0000:01:00): 79, pid=7, GPU has fallen off the bus.", "gpu-off-bus"),
        ("NVRM: Xid (PCI:0000:01:00): 48, pid=7, DBE (double bit error)", "gpu-memory-errors"),
        ("NVRM: Xid (PCI:0000:01:00): 31, pid=7, MMU Fault", "gpu-error"),
        ("Out of memory: Killed process 42 (VLLM::EngineCor) total-vm:1kB", "killed-for-memory"),
        ("traps: VLLM::EngineCor[8] trap invalid opcode ip:7f", "illegal-instruction"),
    ],
)
def test_what_the_kernel_says(tree: Tree, line: str, expected: str) -> None:
    tree.journal("usb 1-1: new device", line)
    assert expected in tree.ids()
    tree.journal("usb 1-1: new device", "Out of memory: Killed process 42 (firefox) total-vm:1kB")
    assert expected not in tree.ids()


def test_a_host_without_systemd(tree: Tree) -> None:
    for path in ("/run/systemd/system/there", "/run/systemd/system"):
        tree.host.remove(Path(path))
    assert tree.first().id == "no-systemd"


def test_a_host_whose_journal_cannot_be_read(tree: Tree) -> None:
    tree.command("journalctl", "echo 'No journal files were opened due to insufficient permissions.' >&2; exit 1")
    unseen = doctor.diagnose(look(SERVICE, tree.host)).unseen
    assert "the kernel's log: the journal cannot be read: No journal files were opened due to insufficient" in unseen[0]


UFW = "echo 'Status: active'; echo 'Default: {} (incoming), allow (outgoing)'; echo '{}'"


@pytest.mark.parametrize(
    ("command", "script", "helps"),
    [
        ("ufw", UFW.format("deny", "22/tcp  ALLOW IN  Anywhere"), "sudo ufw allow 8000/tcp"),
        ("ufw", UFW.format("deny", "8000/tcp  ALLOW IN  Anywhere"), ""),
        ("ufw", UFW.format("allow", "8000/tcp  DENY IN  Anywhere"), "sudo ufw allow 8000/tcp"),
        ("ufw", "echo 'Status: inactive'", ""),
        ("firewall-cmd", "case $1 in --query*) exit 1;; *) echo running;; esac", "--add-port=8000/tcp"),
        ("firewall-cmd", "echo yes", ""),
        ("firewall-cmd", "case $1 in --query*) exit 1;; *) echo ports: 7000-9000/tcp;; esac", ""),
        ("firewall-cmd", "exit 252", ""),
        ("nft", "cat <<'END'\n{policy:drop}\nEND", "nft insert rule inet filter input tcp dport 8000 accept"),
        ("nft", "cat <<'END'\n{policy:accept}\nEND", ""),
        ("nft", "cat <<'END'\n{policy:drop,accept}\nEND", ""),
        ("nft", "cat <<'END'\n{policy:accept,drop}\nEND", "nft delete rule inet filter input handle 7"),
        ("nft", "echo garbled", ""),
    ],
)
def test_a_firewall_is_read_and_not_touched(tree: Tree, command: str, script: str, helps: str) -> None:
    tree.command(command, _with_rules(script))
    found = [finding for finding in tree.findings() if finding.id == "firewall"]
    assert bool(found) is bool(helps)
    if found:
        assert helps in found[0].commands[0]
        assert found[0].severity == "note"


def _with_rules(script: str) -> str:
    chain = {"family": "inet", "table": "filter", "name": "input", "hook": "input", "type": "filter"}
    match = {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 8000}}
    for policy in ("drop", "accept"):
        for verdict in ("", ",accept", ",drop"):
            rule = {"family": "inet", "table": "filter", "chain": "input", "handle": 7}
            rules = [{"rule": {**rule, "expr": [match, {verdict[1:]: None}]}}] if verdict else []
            ruleset = json.dumps({"nftables": [{"chain": {**chain, "policy": policy}}, *rules]})
            script = script.replace(f"{{policy:{policy}{verdict}}}", ruleset)
    return script


def test_a_firewall_does_not_matter_to_a_service_of_this_host_alone(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    made = target(Settings(service=SERVICE, host="127.0.0.1"))
    save_state(tree.host, LAYOUT, State(SERVICE, proved=made))
    tree.command("ufw", UFW.format("deny", ""))
    assert "firewall" not in tree.ids()


def test_the_cpu_engine_does_not_mind_a_broken_gpu(tmp_path: Path) -> None:
    tree = Tree(tmp_path, kind="cpu")
    tree.card()
    tree.command("nvidia-smi", "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    assert "driver-mismatch" not in tree.ids()


def test_entries_of_any_form_are_read(tree: Tree) -> None:
    odd = [{"MESSAGE": [72, 255, 105]}, {"MESSAGE": None}, {"MESSAGE": ["a", "b"]}, ["no", "object"], {}]
    good = {"MESSAGE": "fine", "_SYSTEMD_INVOCATION_ID": "1", "INVOCATION_ID": "2"}
    text = "\n".join([*map(json.dumps, odd), "{cut off", json.dumps(good)])
    tree.command("journalctl", f"cat <<'END'\n{text}\nEND")
    assert entries(tree.host, 10) == [Entry("H\ufffdi", ""), Entry("fine", "2")]


def test_no_more_of_a_journal_is_asked_for_than_can_be_held(tree: Tree) -> None:
    """Lines are bounded by --lines, a line by journalctl's own limit for fields in JSON, which --all would lift."""
    tree.command("journalctl", f'echo "$*" >>{tree.host.at(Path("/asked"))}')
    tree.ids()
    asked = (tree.host.read(Path("/asked")) or "").splitlines()
    assert asked
    for words in asked:
        assert "--output=json" in words
        assert "--all" not in words
        assert any(1 <= int(word[8:]) <= 4000 for word in words.split() if word.startswith("--lines="))


def test_status_says_nothing_of_a_context_before_the_first_proof(tree: Tree) -> None:
    assert ("context", "1024 tokens") in lines(status(SERVICE, tree.host))
    save_state(tree.host, LAYOUT, State(SERVICE, pending="deploy"))
    assert ("context", "-") in lines(status(SERVICE, tree.host))


@dataclasses.dataclass(frozen=True)
class Metrics(Scene):
    """A service that is up, and tells these of its figures."""

    waiting: float = 0
    running: float = 0
    used: float = 0
    active = "active"
    probe_key = PROBE_KEY

    def api(self, timeout: float = 0) -> Api:
        text = (
            f"vllm:num_requests_waiting {self.waiting}\nvllm:num_requests_running {self.running}\n"
            f"vllm:kv_cache_usage_perc {self.used}\n"
        )

        class Told(Api):
            def ask(self, method: str, path: str, body: object = None) -> Answer:
                return Answer(200, text.encode())

        return Told("127.0.0.1", 8000, PROBE_KEY, timeout)


@pytest.mark.parametrize(
    ("waiting", "running", "used", "found"),
    [
        (3, 8, 0.95, "cache-full"), (3, 8, 0.9, "cache-full"), (3, 8, 0.89, ""), (3, 8, 0.5, ""),
        (3, 8, 0.49, "limit-too-low"), (3, 0, 0.49, ""), (0, 8, 0.95, ""), (0, 8, 0.1, ""),
    ],
)  # fmt: skip
def test_requests_wait_for_the_cache_or_for_a_limit(
    tmp_path: Path, waiting: int, running: int, used: float, found: str
) -> None:
    scene = Metrics(Host(tmp_path), LAYOUT, None, None, waiting, running, used)
    assert [finding.id for finding in check_load(scene)] == ([found] if found else [])


class Held(Scene):
    """A service whose engine starts, in a unit that is active all the time, with callers who wait for it."""

    unit: dict[str, str] = {"ActiveState": "active", "SubState": "running"}  # type: ignore[assignment]  # noqa: RUF012
    holding = Holding(12, 8, 120)  # type: ignore[assignment]
    probe_key = PROBE_KEY  # type: ignore[assignment]

    def api(self, timeout: float = 0) -> Api:
        raise AssertionError("it was asked, and the question waits among the callers")


@pytest.mark.parametrize("active", ["active", "reloading", "activating"])
def test_callers_who_wait_are_told_from_a_hang(tree: Tree, monkeypatch: pytest.MonkeyPatch, active: str) -> None:
    monkeypatch.setattr(Held, "unit", {**Held.unit, "ActiveState": active})
    scene = Held(tree.host, LAYOUT, look(SERVICE, tree.host).state, None)
    (finding,) = check_state(scene)
    assert (finding.id, finding.severity) == ("callers-wait", "note")
    assert finding.cause == "it does not serve yet: 12 callers wait, longest 8 s"
    assert list(check_load(scene)) == []
    found = view.of(scene)
    assert (found.ready, found.holding, found.load) == (False, Holding(12, 8, 120), None)
    assert ("callers", "12 callers wait, longest 8 s") in lines(found)


@pytest.mark.parametrize(("active", "serves"), [("active", True), ("reloading", True), ("activating", False)])
def test_a_service_that_is_handed_over_serves_until_callers_are_held(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, active: str, serves: bool
) -> None:
    monkeypatch.setattr(Held, "unit", {**Held.unit, "ActiveState": active})
    monkeypatch.setattr(Held, "holding", None)
    scene = Held(tree.host, LAYOUT, look(SERVICE, tree.host).state, None)
    assert scene.serves == serves
    if active != "active":
        assert [(each.id, each.severity) for each in check_state(scene)] == [("service-changing", "note")]


class Apart(Held):
    """A part of one model on two hosts, the other of which is lost."""

    standing = Standing("waiting for the group: 10.0.0.2", "10.0.0.2 is lost: it has closed the connection")  # type: ignore[assignment]


@pytest.mark.parametrize("active", ["active", "activating"])
def test_a_host_of_one_model_that_is_missing_is_named_and_nobody_is_asked(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, active: str
) -> None:
    monkeypatch.setattr(Held, "unit", {**Held.unit, "ActiveState": active})
    state = look(SERVICE, tree.host).state
    assert state is not None
    assert state.proved is not None
    settings = dataclasses.replace(state.proved.settings, group_hosts=("10.0.0.1", "10.0.0.2"))
    member = dataclasses.replace(state.proved, settings=settings, place=Place(0, "e0"))
    save_group(tree.host, LAYOUT, Group("mine", (Peer("gpu1"), Peer("gpu2")), SPAN, 1))
    scene = Apart(tree.host, LAYOUT, dataclasses.replace(state, proved=member), None)
    (finding,) = check_state(scene)
    assert (finding.id, finding.severity) == ("group-broken", "fault")
    assert finding.evidence == f"{Apart.standing.stage}; {Apart.standing.lost}"
    found = view.of(scene)
    assert (found.ready, found.group and found.group.complete) == (False, False)
    assert found.group
    assert found.group.words == "one model on gpu1 (head), gpu2"


class Ran(Scene):
    """A service whose journal is this one's."""

    runs: list[list[str]] = []  # type: ignore[assignment]  # noqa: RUF012


OLD, REFUSED = ["INFO old engine"], ["ValueError: To serve at least one request with the model's max seq len (4096)"]
SAYS = "vllm-launcher: "


@pytest.mark.parametrize(
    ("lines", "last"),
    [
        (OLD, OLD),
        ([*OLD, f"{SAYS}the next engine takes over: x", *REFUSED], [f"{SAYS}the next engine takes over: x", *REFUSED]),
        (
            [*OLD, f"{SAYS}the next engine takes over: x", *REFUSED, f"{SAYS}starting again what ran before", *OLD],
            [f"{SAYS}starting again what ran before", *OLD],
        ),
        ([*OLD, *REFUSED, f"{SAYS}the change is not taken over: x"], [f"{SAYS}the change is not taken over: x"]),
        ([], []),
    ],
)
def test_of_a_run_that_was_handed_over_the_last_start_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str], last: list[str]
) -> None:
    monkeypatch.setattr(Ran, "runs", [lines, ["another run"]] if lines else [])
    assert Ran(Host(tmp_path), LAYOUT, None, None).last_start == last


def test_a_successor_that_was_refused_is_no_reason_why_the_service_fails_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = "systemd[1]: qwen3vl.service: A process of this unit has been killed by the OOM killer."
    monkeypatch.setattr(Ran, "runs", [[killed, *REFUSED, f"{SAYS}starting again what ran before"]])
    scene = Ran(Host(tmp_path), LAYOUT, None, None)
    monkeypatch.setattr(Ran, "unit", {"ActiveState": "failed"})
    assert list(check_journal(scene)) == []
    monkeypatch.setattr(Ran, "runs", [[f"{SAYS}starting again what ran before", killed]])
    assert [finding.severity for finding in check_journal(scene)] == ["fault"]


def test_the_words_for_it_are_the_supervisors() -> None:
    says = "".join((RUNTIME / f"vllm_{name}.py").read_text() for name in ("main", "successor"))
    assert all(word.removeprefix(SAYS) in says for word in BEGINNINGS)
