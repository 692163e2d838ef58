"""doctor and status of a service with replicas: each looked at by itself, the gateway before them, and the whole."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import stat
import tarfile
from pathlib import Path

import jsonschema
import pytest

from installer.base.host import Host
from installer.base.layout import UNITS
from installer.diagnosis import bug_report, doctor, scene
from installer.diagnosis.finding import Finding
from installer.diagnosis.scene import Scene, look
from installer.forms.venv import engines
from installer.look import logs, screen, watch
from installer.look import status as view
from installer.spec.group import Group, Peer, save_group
from installer.spec.keys import Key, digest
from installer.spec.records import load_state, save_state
from installer.spec.target import Placed, Replica
from installer.units import haproxy
from installer.units.api import Answer, Api, NoAnswer
from installer.units.custody import Custody
from installer.units.graph import handle, members
from installer.units.haproxy import GatewayState, MemberState
from installer.units.holding import Holding
from installer.units.keyring import keys_in
from installer.units.render import fingerprint, unit, with_keys
from installer.verbs.output import as_plain
from tests.diagnosis.test_doctor import LAYOUT, SERVICE, Tree
from tests.kit.boot.surroundings import REPO
from tests.kit.certificates import certificate
from tests.kit.commands import check_ours

UP = {"ActiveState": "active", "SubState": "running", "MainPID": "7", "NRestarts": "0", "MemoryCurrent": "1000"}
SERVES = {**UP, "StatusText": "serving tiny"}
GPUS = (Placed("card-a", "NVIDIA H100"), Placed("card-b", "NVIDIA H100"))
METRICS = """vllm:generation_tokens_total 100
vllm:num_requests_running {}
vllm:num_requests_waiting 0
vllm:kv_cache_usage_perc 0.5
"""
BALANCED = GatewayState({1: MemberState("UP", "L7OK", 3), 2: MemberState("UP", "L7OK", 2)}, 0, None)


class Told(Api):
    """A server that says that so many requests are under way there as its port ends with; or one that says nothing."""

    def ask(self, method: str, path: str, body: object = None) -> Answer:
        if self.port in Service.silent:
            raise NoAnswer(f"no answer from port {self.port}")
        if path == "/metrics":
            return Answer(200, METRICS.format(self.port % 10).encode())
        return Answer(200, json.dumps({"data": [{"id": "tiny"}]}).encode())


class Service(Scene):
    """A service of two replicas behind a gateway, as systemd and the gateway tell of it."""

    shown: dict[int, dict[str, str]] = {}  # noqa: RUF012
    said: GatewayState | None = None
    silent: frozenset[int] = frozenset()
    is_root = True  # type: ignore[assignment]
    problems = ()  # type: ignore[assignment]  # of the host below

    @property
    def unit(self) -> dict[str, str]:  # type: ignore[override]
        return self.shown[self.number]

    @property
    def gateway(self) -> GatewayState | None:  # type: ignore[override]
        return self.said if self.is_gateway else None

    def api(self, timeout: float = 0) -> Api:
        return Told(self.settings.host, self.settings.port, self.probe_key, timeout)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    tree = Tree(tmp_path, kind="cpu")
    state = load_state(tree.host, LAYOUT)
    assert state is not None
    assert state.proved is not None
    replicas = (Replica(1, 8101, GPUS[:1]), Replica(2, 8102, GPUS[1:]))
    settings = dataclasses.replace(state.proved.settings, replicas=2)
    made = dataclasses.replace(state.proved, settings=settings, gpus=GPUS, replicas=replicas)
    texts = {member.path: unit(made, LAYOUT, member.number) for member in members(LAYOUT, made)}
    texts[LAYOUT.unit] = "[Service]\nExecStart=/usr/bin/python3 vllm_gateway.py run\n"
    for path, text in texts.items():
        tree.write(path, text)
    owned = {str(path): (fingerprint(text, path, LAYOUT),) for path, text in texts.items()}
    save_state(tree.host, LAYOUT, dataclasses.replace(state, owned=owned, proved=made))
    tree.write(handle(LAYOUT).wants_link, "")
    tree.command("haproxy", "echo HAProxy version 2.6.12")
    tree.write(Path("/etc/os-release"), "ID=debian\n")
    monkeypatch.setattr(Service, "shown", {0: UP, 1: SERVES, 2: SERVES})
    monkeypatch.setattr(Service, "said", BALANCED)
    monkeypatch.setattr(Service, "silent", frozenset())
    monkeypatch.setattr(Custody, "stranger", lambda *_: None)
    monkeypatch.setattr(engines, "import_error", lambda *_: "")
    monkeypatch.setattr(scene, "Scene", Service)
    return tree.host


def does(monkeypatch: pytest.MonkeyPatch, number: int, **shown: str) -> None:
    monkeypatch.setattr(Service, "shown", {**Service.shown, number: {**Service.shown[number], **shown}})


def says(monkeypatch: pytest.MonkeyPatch, number: int, status: str, check: str = "L7OK") -> None:
    members = {**BALANCED.members, number: MemberState(status, check, 0)}
    monkeypatch.setattr(Service, "said", dataclasses.replace(BALANCED, members=members))


def findings(host: Host) -> dict[str, Finding]:
    """What is found; every command of ours is one that there is."""
    found = doctor.diagnose(look(SERVICE, host)).findings
    check_ours([command for each in found for command in each.commands])
    return {each.id: each for each in found}


def test_a_sound_one(host: Host) -> None:
    assert [each.cause for each in findings(host).values() if each.severity == "fault"] == []


def test_one_that_failed_is_named(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    does(monkeypatch, 2, ActiveState="failed", Result="exit-code")
    found = findings(host)["service-failed"]
    assert (found.severity, found.cause) == ("fault", "qwen3vl@2: the service failed (exit-code)")
    assert "sudo systemctl restart qwen3vl@2" in found.commands


def test_two_that_failed_are_both_named(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2):
        does(monkeypatch, number, ActiveState="failed", Result="exit-code")
    causes = [each.cause for each in doctor.diagnose(look(SERVICE, host)).findings if each.id == "service-failed"]
    assert causes == [f"qwen3vl@{number}: the service failed (exit-code)" for number in (1, 2)]


def test_what_is_wrong_with_the_engine_of_both_is_said_in_their_place(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    does(monkeypatch, 2, ActiveState="failed", Result="exit-code")
    monkeypatch.setattr(engines, "import_error", lambda *_: "ImportError: x")
    assert "service-failed" not in (found := findings(host))
    assert found["import-failed"].evidence == "ImportError: x"


def test_the_cause_of_one_hides_no_fault_of_the_other(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2):
        does(monkeypatch, number, ActiveState="failed", Result="exit-code")
    host.remove(members(LAYOUT, look(SERVICE, host).state.proved)[0].path)  # type: ignore[union-attr]
    found = findings(host)
    assert found["unit-missing"].cause == "qwen3vl@1: /etc/systemd/system/qwen3vl@1.service is gone"
    assert found["service-failed"].cause.startswith("qwen3vl@2: ")


def test_one_that_hangs(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Service, "silent", frozenset([8101]))
    found = findings(host)["no-answer"]
    assert (found.cause, found.commands) == (
        "qwen3vl@1: the service runs, but does not answer", ("sudo systemctl restart qwen3vl@1",)
    )  # fmt: skip


def test_one_whose_unit_was_edited(host: Host) -> None:
    path = Path("/etc/systemd/system/qwen3vl@2.service")
    host.write(path, f"{host.read(path)}Nice=5\n")
    assert findings(host)["unit-edited"].cause == f"qwen3vl@2: {path} was edited by hand"
    assert "+Nice=5" in findings(host)["unit-edited"].evidence


def test_one_that_was_stopped_by_hand_and_a_whole_that_was(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    does(monkeypatch, 2, ActiveState="inactive", SubState="dead")
    assert findings(host)["service-stopped"].commands == ("sudo systemctl start qwen3vl@2",)
    for number in (0, 1):
        does(monkeypatch, number, ActiveState="inactive", SubState="dead")
    assert findings(host)["service-stopped"].commands == ("sudo systemctl start qwen3vl",)


@pytest.mark.parametrize("state", ["failed", "inactive"])
def test_a_gateway_that_is_down_before_replicas_that_serve(
    host: Host, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    does(monkeypatch, 0, ActiveState=state)
    found = findings(host)
    assert found["gateway-down"].severity == "fault"
    assert found["gateway-down"].commands[0] == "sudo systemctl start qwen3vl", "a restart would be one of all"
    assert not {"service-failed", "service-stopped"} & found.keys()


def test_without_haproxy_the_command_that_installs_it(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Service, "problems", Scene.__dict__["problems"])
    assert "haproxy-missing" not in {each.id for each in doctor.diagnose(look(SERVICE, host)).findings}
    host.remove(Path("/usr/bin/haproxy"))
    found = {each.id: each for each in doctor.diagnose(look(SERVICE, host)).findings}["haproxy-missing"]
    assert (found.severity, found.commands) == ("fault", ("sudo apt-get install -y haproxy",))


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("MAINT", "replica-out"), ("DRAIN", "replica-out"), ("DOWN", "replica-unreached"), ("DOWN 1/2", None),
        ("UP 1/2", None),
    ],
)  # fmt: skip
def test_a_replica_to_which_the_gateway_gives_nothing(
    host: Host, monkeypatch: pytest.MonkeyPatch, status: str, expected: str | None
) -> None:
    says(monkeypatch, 2, status)
    found = {name: each for name, each in findings(host).items() if name.startswith("replica-")}
    assert list(found) == ([expected] if expected else [])
    if expected:
        assert found[expected].severity == "fault"
        assert found[expected].cause.startswith("qwen3vl@2: ")
    if expected == "replica-unreached":
        assert found[expected].commands == ("sudo systemctl restart qwen3vl@2",), "there is no door"
        door = host.at(LAYOUT.door(2))
        door.parent.mkdir(parents=True, exist_ok=True)
        os.mknod(door, stat.S_IFSOCK | 0o666)
        assert findings(host)[expected].commands == ("sudo journalctl -u qwen3vl -n 200",)
    if expected == "replica-out":
        assert found[expected].commands == ("sudo vllm-install deploy --service qwen3vl",)
        does(monkeypatch, 2, ActiveState="failed")
        assert "replica-out" not in findings(host), "that it serves nobody then is no fault of the gateway's"


def test_a_gateway_that_does_not_answer(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Service, "silent", frozenset([8000]))
    assert findings(host)["gateway-no-answer"].evidence == "no answer from port 8000"
    monkeypatch.setattr(Service, "said", None)
    assert findings(host)["gateway-silent"].severity == "note"


@pytest.mark.parametrize(("status", "is_told"), [("DOWN", True), ("DOWN 1/2", False), ("UP", False)])
def test_another_host_that_the_gateway_does_not_reach(
    host: Host, monkeypatch: pytest.MonkeyPatch, status: str, is_told: bool
) -> None:
    others = {"10.0.0.2": MemberState(status, "L4CON", 0)}
    monkeypatch.setattr(Service, "said", dataclasses.replace(BALANCED, others=others))
    found = findings(host)
    assert ("gateway-apart" in found) == is_told
    if is_told:
        assert (found["gateway-apart"].severity, found["gateway-apart"].evidence) == ("fault", "DOWN L4CON")
        save_group(host, LAYOUT, Group("mine", (Peer("gpu2", out=True, address="10.0.0.2"),)))
        assert "gateway-apart" not in findings(host), "it was taken out"


def test_replicas_with_other_keys_than_the_first(host: Host) -> None:
    path = Path("/etc/systemd/system/qwen3vl@2.service")
    text = host.read(path) or ""
    host.write(path, with_keys(text, [*keys_in(text), Key("leaked", digest("sk-leaked"))]))
    found = findings(host)["keys-differ"]
    assert (found.severity, found.evidence) == ("fault", "leaked")
    assert str(path) in found.cause


# status, list, watch, logs


def shown(host: Host) -> dict[str, str]:
    return dict(screen.lines(view.of(look(SERVICE, host))))


def test_status_shows_each(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    does(monkeypatch, 2, ActiveState="failed", SubState="failed", StatusText="", NRestarts="5")
    says(monkeypatch, 2, "DOWN")
    found = view.of(look(SERVICE, host))
    jsonschema.validate(as_plain(found), json.loads((REPO / "docs/status-schema.json").read_text()))
    assert (found.ready, found.stage, found.memory) == (True, "1 of 2 replicas serve", 3000)
    assert [(each.number, each.ready, each.gateway, each.gpus) for each in found.members] == [
        (1, True, "UP", ("card-a",)), (2, False, "DOWN", ("card-b",)),
    ]  # fmt: skip
    screen = shown(host)
    assert screen["service"] == "qwen3vl: active (running), 1 of 2 replicas serve"
    assert "active (running), serving tiny; http://127.0.0.1:8101" in screen["replica 1"]
    assert "failed (failed); http://127.0.0.1:8102" in screen["replica 2"]
    assert "restarts by systemd: 5; gateway: DOWN" in screen["replica 2"]


def test_gpus_that_are_chosen_by_hand_for_one_are_that_one_s(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    state = load_state(host, LAYOUT)
    assert state is not None
    assert state.proved is not None
    engine = dataclasses.replace(state.proved.engine, kind="cuda")
    save_state(host, LAYOUT, dataclasses.replace(state, proved=dataclasses.replace(state.proved, engine=engine)))
    host.write(UNITS / f"{SERVICE}@2.service.d/g.conf", "[Service]\nEnvironment=CUDA_VISIBLE_DEVICES=0\n")
    assert [each.gpus_by_hand for each in view.of(look(SERVICE, host)).members] == [None, "CUDA_VISIBLE_DEVICES=0"]
    assert "GPUs chosen by hand, CUDA_VISIBLE_DEVICES=0" in shown(host)["replica 2"]
    found = findings(host)["gpus-by-hand"]
    assert found.severity == "fault", "its unit lets in the card that it was given"
    assert found.cause.startswith("qwen3vl@2: CUDA_VISIBLE_DEVICES=0, set by hand, wins")
    assert found.commands[1] == "sudo systemctl edit qwen3vl@2"


def with_tls(host: Host) -> None:
    state = load_state(host, LAYOUT)
    assert state is not None
    assert state.proved is not None
    settings = dataclasses.replace(state.proved.settings, tls="self")
    save_state(host, LAYOUT, dataclasses.replace(state, proved=dataclasses.replace(state.proved, settings=settings)))


@pytest.mark.parametrize(
    ("days", "said"),
    [(15, None), (14, ("note", "expires in 13 days")), (None, ("fault", "cannot serve"))],
)
def test_a_certificate_made_here_that_ends_soon_is_seen(
    host: Host, days: int | None, said: tuple[str, str] | None
) -> None:
    with_tls(host)
    if days is not None:
        certificate(host.at(LAYOUT.state_dir), days=days)
    found = findings(host).get("tls")
    assert (found is None) == (said is None)
    if said and found:
        assert (found.severity, said[1] in found.cause) == (said[0], True)
        assert found.commands == (f"sudo vllm-install deploy --service {SERVICE}",)


def test_the_address_says_how_it_is_spoken_to(host: Host) -> None:
    assert view.of(look(SERVICE, host)).address == "http://0.0.0.0:8000"
    with_tls(host)
    found = view.of(look(SERVICE, host))
    assert found.address == "https://0.0.0.0:8000"
    assert found.members[0].address == "http://127.0.0.1:8101", "within the host"


def test_what_they_do_is_added_up(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    found = view.of(look(SERVICE, host)).load
    assert found is not None
    assert (found.running, found.waiting, found.cache_used) == (3.0, 0.0, 0.5)
    monkeypatch.setattr(Service, "silent", frozenset([8101]))
    alone = view.of(look(SERVICE, host))
    assert alone.load is not None
    assert alone.load.running == 2.0


def test_callers_who_wait_for_a_replica(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2):
        does(monkeypatch, number, ActiveState="activating", StatusText="loading weights")
    monkeypatch.setattr(Service, "said", GatewayState({}, 12, 8))
    found = view.of(look(SERVICE, host))
    assert (found.ready, found.holding) == (False, Holding(12, 8, 120))
    assert shown(host)["callers"] == "12 callers wait, longest 8 s"
    assert findings(host)["callers-wait"].severity == "note"
    monkeypatch.setattr(Service, "said", None)
    monkeypatch.setattr(Service, "silent", frozenset([8000]))
    assert not view.of(look(SERVICE, host)).ready
    assert "no-answer" not in findings(host), "it was asked, and the question waits among the callers"


def test_one_engine_alone_is_shown_as_before(tmp_path: Path) -> None:
    tree = Tree(tmp_path, kind="cpu")
    found = view.of(look(SERVICE, tree.host))
    assert found.members == ()
    assert not [label for label, _ in screen.lines(found) if label.startswith("replica")]


def test_watching_counts_them_and_takes_no_rate_from_others_than_before(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "EVERY", 0)
    frames = watch.frames(SERVICE, host)
    both = next(frames)
    assert "replicas=2" in watch.line(both)
    assert [label for label, _ in watch.rows(both)][1:3] == ["replica 1", "replica 2"]
    assert next(frames).tokens_per_second == 0.0
    monkeypatch.setattr(Service, "silent", frozenset([8102]))
    assert next(frames).tokens_per_second is None
    monkeypatch.setattr(Service, "silent", frozenset())
    assert next(frames).tokens_per_second is None, "which that one generated before"
    does(monkeypatch, 2, ActiveState="failed")
    assert "replicas=1" in watch.line(next(frames))


def test_logs_are_those_of_all(host: Host) -> None:
    host.write(Path("/etc/systemd/system/qwen3vl@7.service"), "[Service]\n")
    names = ["qwen3vl.service", "qwen3vl@1.service", "qwen3vl@2.service"]
    assert logs._units(SERVICE, host) == [word for name in names for word in ("--unit", name)]
    host.remove(LAYOUT.state_file)
    for name in ("1", "2", "7"):
        host.remove(Path(f"/etc/systemd/system/qwen3vl@{name}.service"))
    assert logs._units(SERVICE, host) == ["--unit", "qwen3vl.service"]


# The report


def test_the_report_has_all_of_them(host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    host.write(Path("/usr/bin/journalctl"), f'#!/bin/sh\necho "$*" >>{asked}\n', 0o755)
    seen = look(SERVICE, host)
    bug_report.write(seen, doctor.diagnose(seen), Path("/report.tar.gz"))
    with tarfile.open(fileobj=io.BytesIO(host.at(Path("/report.tar.gz")).read_bytes())) as archive:
        texts = {name: (archive.extractfile(name) or io.BytesIO()).read().decode() for name in archive.getnames()}
    assert "vl@2.service\n" in texts[f"{SERVICE}-report/unit.txt"]
    assert "# qwen3vl@2.service\nActiveState=active" in texts[f"{SERVICE}-report/systemd.txt"]
    assert "L7OK" in texts[f"{SERVICE}-report/gateway.txt"]
    units = "--unit=qwen3vl.service --unit=qwen3vl@1.service --unit=qwen3vl@2.service"
    assert units in asked.read_text()


def test_the_gateway_is_asked_by_root_alone_and_need_not_say_anything(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    seen = look(SERVICE, host)
    assert seen.is_gateway
    for is_root, active, said in ((True, "active", BALANCED), (False, "active", None), (True, "inactive", None)):
        monkeypatch.setattr(haproxy, "state", lambda *_: BALANCED)
        monkeypatch.setattr(Scene, "is_root", is_root)
        monkeypatch.setattr(Scene, "unit", {"ActiveState": active})
        assert look(SERVICE, host).gateway == said
    monkeypatch.setattr(Scene, "is_root", True)
    monkeypatch.setattr(Scene, "unit", UP)
    assert look(SERVICE, host).gateway == BALANCED

    def nobody(*_: object) -> GatewayState:
        raise haproxy.NoGateway("it does not answer")

    monkeypatch.setattr(haproxy, "state", nobody)
    assert look(SERVICE, host).gateway is None
