"""Deploys on a temporary root, from what is asked to what is remembered: what is refused, kept, made anew, put back.

The host's facts are given, its programs do nothing, and the proof is told how it ends; engines come of themselves.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from installer.base.changes import Write
from installer.base.errors import Exit, InstallError, Refused, UsageError
from installer.base.host import Host
from installer.base.layout import Layout
from installer.base.report import Report
from installer.checks import facts
from installer.flow import deploy, fit, prove, remove, rotate
from installer.flow.prove import NotProved
from installer.flow.request import KeyChoice, Request
from installer.flow.resolve import resolve
from installer.flow.transaction import changing
from installer.flow.wanted import Wanted
from installer.forms.podman.images import STORAGE, BringImage
from installer.forms.venv import engines, toolkit
from installer.forms.venv.engines import MARKER, InstallEngine
from installer.model.builtin import MakeBuiltin
from installer.model.model_config import Config
from installer.spec import keys
from installer.spec.engine import Engine
from installer.spec.facts import Facts, Gateway, Process
from installer.spec.former import Former
from installer.spec.keys import digest
from installer.spec.model import ModelError, ModelFile
from installer.spec.records import load_state, save_state
from installer.spec.settings import Settings
from installer.spec.state import State
from installer.spec.target import Target
from installer.spec.toolkit import Toolkit
from installer.spec.values import AUTO, BUILTIN
from installer.units.graph import handle
from installer.units.keyring import unit_keys
from installer.units.monitoring import KEY, NAME
from installer.units.render import with_keys
from installer.weights.models import Download
from tests.checks.test_preflight import CUDA, CUDA_13, H200, HEALTHY
from tests.flow import test_transaction
from tests.flow.test_transaction import LAYOUT, Proofs, files, record
from tests.kit.targets import target

host, proofs = test_transaction.host, test_transaction.proofs
TINY = Settings(model=BUILTIN, offline=True)
PYTHON = HEALTHY.interpreters[0].path
KEPT = "sk-of-a-user-0123456789abcdefghijkl"


class Heard(Report):
    """What a user is told beside the result."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)

    warn = note


class Seen:
    """A host whose facts are these, and where any engine comes of itself."""

    def __init__(self) -> None:
        self.facts: Facts = HEALTHY
        self.packages = "first"
        self.opening: list[str] = []  # keys of which it was asked whether they open the service

    def gather(self, host: Host, settings: Settings, layout: Layout) -> Facts:
        assert layout == Layout(settings.service)
        return self.facts

    def keys_in_force(self, want: Wanted, host: Host, key: str) -> None:
        assert want.probe_key == host.word(want.layout.probe_key)
        self.opening.append(key)

    def newest(self, settings: Settings, kind: str, python: Path, host: Host, report: Report) -> Engine:
        return dataclasses.replace(self.offered(settings, kind, python, host, report), id="newest")

    def offered(self, settings: Settings, kind: str, python: Path, host: Host, report: Report) -> Engine:
        assert isinstance(report, Report)
        lock = f"vllm=={settings.vllm_version}\n# {self.packages}\n"
        request = engines._request(settings, kind, python, engines.read_sources(host, settings, os.environ))
        return Engine(digest(lock)[:16], kind, settings.vllm_version, python, lock, request)


@pytest.fixture(autouse=True)
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    seen = Seen()
    monkeypatch.setattr(facts, "gather", seen.gather)
    monkeypatch.setattr(engines, "offered", seen.offered)
    monkeypatch.setattr(engines, "newest", seen.newest)
    monkeypatch.setattr(prove, "keys_in_force", seen.keys_in_force)
    monkeypatch.setattr(InstallEngine, "apply", install)
    return seen


def install(change: InstallEngine, host: Host, report: Report) -> None:
    host.write(change.path / MARKER, "")
    host.write(change.path / "bin/python", "", 0o755)


def deployed(host: Host, settings: Settings = TINY, verb: str = "deploy", **more: object) -> deploy.Deployed:
    shown: list[deploy.Deployed] = []
    begin = deploy.deploy if verb == "deploy" else deploy.change
    begin(Request(verb, settings, **more), host, Heard(), shown.append)  # type: ignore[arg-type]
    (done,) = shown
    return done


def files_among(done: deploy.Deployed) -> list[object]:
    """Without what systemd has to do, which on this host never comes to be done."""
    return [change for change in done.changes if isinstance(change, Write | InstallEngine | MakeBuiltin)]


def names(host: Host) -> list[str]:
    return [key.name for key in unit_keys(host, LAYOUT)]


# From nothing to a service, and again


def test_a_deploy_says_its_key_once_and_a_second_one_changes_nothing(host: Host, proofs: Proofs) -> None:
    first = deployed(host)
    assert first.first
    assert first.new_key is not None
    assert first.new_key.startswith("sk-qwen3vl-")
    assert {type(change) for change in first.changes} >= {InstallEngine, MakeBuiltin, Write}
    held = unit_keys(host, LAYOUT)
    assert [key.name for key in held] == ["default", "probe"]
    assert held[0].digest == digest(first.new_key)
    assert held[1].digest == digest(host.word(LAYOUT.probe_key))
    state, before = record(host), files(host)
    assert state.key_shown
    assert state.proved is not None
    assert (state.proved.engine.kind, state.proved.model.source) == ("cpu", "builtin")
    again = deployed(host)
    assert files_among(again) == []
    assert (again.new_key, again.first) == (None, False)
    assert (record(host).proved, files(host)) == (state.proved, before)
    assert len(proofs.asked) == 2, "what is there is proved as well"


def test_a_key_that_nobody_saw_is_made_anew(host: Host, proofs: Proofs) -> None:
    def cannot_show(done: deploy.Deployed) -> None:
        raise InstallError("the pipe is closed")

    with pytest.raises(InstallError, match="the pipe is closed"):
        deploy.deploy(Request("deploy", TINY), host, Heard(), cannot_show)
    (unseen, _), state = unit_keys(host, LAYOUT), record(host)
    assert (state.key_shown, state.pending) == (False, None)
    again = deployed(host)
    assert again.new_key is not None
    assert unit_keys(host, LAYOUT)[0].digest == digest(again.new_key) != unseen.digest
    assert record(host).key_shown


@pytest.mark.parametrize("plain", [False, True])
def test_a_key_that_is_given_is_the_key(host: Host, proofs: Proofs, seen: Seen, plain: bool) -> None:
    done = deployed(host, keys=KeyChoice(KEPT, plain=plain, further=("sk-second-0123456789abcdefghij",)))
    assert done.new_key is None
    held = {key.name: key for key in unit_keys(host, LAYOUT)}
    assert list(held) == ["default", "default-2", "probe"]
    assert held["default"].digest == digest(KEPT)
    assert held["default"].plain == (KEPT if plain else None)
    assert seen.opening == [KEPT, "sk-second-0123456789abcdefghij"]
    assert [key.name for key in rotate.list_keys("qwen3vl", host)] == list(held)


def test_a_key_that_the_admin_wrote_into_the_unit_stays(host: Host, proofs: Proofs) -> None:
    deployed(host)
    guest = keys.Key("guest", digest("sk-guest"))
    host.write(LAYOUT.unit, with_keys(host.read(LAYOUT.unit) or "", (*unit_keys(host, LAYOUT), guest)))
    deployed(host, dataclasses.replace(TINY, port=8001))
    proved = record(host).proved
    assert proved is not None
    assert guest in unit_keys(host, LAYOUT)
    assert guest in proved.keys


def test_who_watches_the_host_watches_a_new_service(host: Host, proofs: Proofs) -> None:
    host.write(KEY, "sk-of-the-watcher-0123456789abcd\n", 0o600)
    deployed(host)
    assert NAME in names(host)


def test_a_plan_changes_nothing_makes_no_key_and_needs_no_privilege(host: Host, seen: Seen) -> None:
    seen.facts = dataclasses.replace(HEALTHY, is_root=False)
    before = files(host)
    plan = deploy.plan(Request("plan", TINY), host, Heard())
    assert files(host) == before
    (unit,) = (change for change in plan.changes if isinstance(change, Write) and change.path == LAYOUT.unit)
    assert f"sha256:{keys.TO_BE_MADE}" in unit.text
    with pytest.raises(Refused, match="root"):
        deployed(host)


def test_what_is_odd_about_a_host_and_no_reason_to_refuse_is_said(host: Host, seen: Seen) -> None:
    seen.facts = dataclasses.replace(HEALTHY, memory_total=2 << 30)
    heard = Heard()
    deploy.plan(Request("plan", TINY), host, heard)
    assert [text for text in heard.said if text.startswith("this host has only 2.0 GiB of memory")]


# What is refused, before anything is touched


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"port_holder": Process(7, "nginx", "nginx.service")}, "nginx"),
        ({"interpreters": ()}, "Python"),
        ({"systemd": None, "systemd_is_pid1": False}, "systemd"),
    ],
)
def test_a_host_that_cannot_carry_it_is_left_alone(
    host: Host, seen: Seen, found: dict[str, object], words: str
) -> None:
    seen.facts = dataclasses.replace(HEALTHY, **found)  # type: ignore[arg-type]
    before = files(host)
    with pytest.raises(Refused, match=words) as refused:
        deployed(host)
    assert refused.value.exit_code == Exit.REFUSED
    assert files(host) == before
    assert load_state(host, LAYOUT) is None


@pytest.mark.parametrize(("tokens", "is_useful"), [(16, False), (255, False), (256, True)])
def test_a_context_in_which_no_chat_fits_is_refused(host: Host, proofs: Proofs, tokens: int, is_useful: bool) -> None:
    settings = dataclasses.replace(TINY, max_model_len=tokens)
    if is_useful:
        deployed(host, settings)
        return
    with pytest.raises(UsageError, match=f"{tokens} tokens is too small") as refused:
        deployed(host, settings)
    assert "256 at least" in str(refused.value.hint)


def test_a_context_beyond_the_model_s_own_is_refused_with_what_it_has(host: Host) -> None:
    with pytest.raises(Refused, match="32768"):
        deployed(host, dataclasses.replace(TINY, max_model_len=65536))
    assert load_state(host, LAYOUT) is None


def test_a_throwaway_server_needs_no_systemd(host: Host, seen: Seen) -> None:
    seen.facts = dataclasses.replace(HEALTHY, systemd=None, systemd_is_pid1=False, sysusers=False)
    state = State("qwen3vl")
    resolved = resolve(Request("test", TINY), state, host, Heard(), for_real=False, throwaway=True)
    assert resolved.want.target.engine.kind == "cpu"
    with pytest.raises(Refused):
        resolve(Request("test", TINY), state, host, Heard(), for_real=False)


def test_what_is_staged_is_what_is_slow_and_nothing_of_the_service(host: Host) -> None:
    before = set(files(host))
    staged = deploy.stage(Request("deploy", TINY), host, Heard())
    made = {Path("/", path) for path in set(files(host)) - before}
    assert LAYOUT.engines / staged.engine / MARKER in made
    assert LAYOUT.builtin_models / "tiny/config.json" in made
    assert not [path for path in made if not path.is_relative_to(LAYOUT.engines) and path.is_relative_to("/etc")]
    assert load_state(host, LAYOUT) is None


def test_the_gateway_asks_the_other_hosts_and_not_its_own_as_one_of_them(host: Host, seen: Seen) -> None:
    gateway = Gateway((2, 8), addresses=("10.0.0.2",))
    seen.facts = dataclasses.replace(HEALTHY, gateway=gateway)
    settings = dataclasses.replace(TINY, gateway_hosts=("10.0.0.1", "10.0.0.2", "10.0.0.3"))
    plan = deploy.plan(Request("plan", settings), host, Heard())
    assert plan.want.target.others == ("10.0.0.1", "10.0.0.3")


def test_a_file_of_somebody_else_is_not_written_over(host: Host) -> None:
    host.write(LAYOUT.unit, "[Service]\nExecStart=/usr/bin/theirs\n")
    with pytest.raises(Refused, match=r"qwen3vl\.service"):
        deployed(host)
    assert host.read(LAYOUT.unit) == "[Service]\nExecStart=/usr/bin/theirs\n"


def test_what_a_change_needs_of_which_disk_is_known_before_it_begins(host: Host) -> None:
    made = target(TINY, kind="cpu")
    engine = InstallEngine(made.engine, TINY, LAYOUT)
    files = (ModelFile("a.safetensors", 100, "a"), ModelFile("b.safetensors", 50, "b", cached=True))
    weights = Download(dataclasses.replace(made.model, files=files), 1, ())
    image = BringImage(made.engine, "/srv/vllm.tar", LAYOUT, 20)
    assert engine.bytes_needed > 0
    assert deploy.space_needed([engine, weights, image, Write(LAYOUT.unit, "x" * 10)], LAYOUT) == {
        LAYOUT.engines: engine.bytes_needed, LAYOUT.hub: 100, STORAGE: 20,
    }  # fmt: skip


# A directory of the user's own


def test_a_directory_of_the_user_s_own_has_to_be_whole_and_where_the_service_can_see_it(host: Host) -> None:
    hidden = Path("/tmp/ana/tiny")
    host.make_dir(hidden)
    with pytest.raises(ModelError, match=r"cannot be served: .*no weights.*; .*hides /tmp; move the model"):
        deployed(host, dataclasses.replace(TINY, model=str(hidden)))
    assert load_state(host, LAYOUT) is None


# A change of what is there


def test_a_change_is_made_of_what_is_there_and_the_way_back_leads_to_it(host: Host, proofs: Proofs) -> None:
    key = deployed(host).new_key
    done = deployed(host, dataclasses.replace(TINY, port=8001), "set PORT=8001")
    assert not done.first
    assert done.new_key is None
    state = record(host)
    assert state.proved is not None
    assert state.previous is not None
    assert (state.previous.settings.port, state.proved.settings.port) == (8000, 8001)
    assert [(event.what, event.outcome) for event in state.history] == [
        ("deploy", "proved"),
        ("set PORT=8001", "proved"),
    ]
    assert [change.path for change in deploy.plan_rollback("qwen3vl", host) if isinstance(change, Write)]
    shown: list[deploy.Deployed] = []
    deploy.rollback("qwen3vl", host, Heard(), shown.append)
    state = record(host)
    assert state.proved is not None
    assert state.proved.settings.port == 8000
    assert key is not None
    assert unit_keys(host, LAYOUT)[0].digest == digest(key), "with the keys of today"


def test_no_rollback_brings_back_a_key_that_was_revoked_since(host: Host, proofs: Proofs) -> None:
    deployed(host)
    mine = tuple(unit_keys(host, LAYOUT))
    host.write(LAYOUT.unit, with_keys(host.read(LAYOUT.unit) or "", (*mine, keys.Key("guest", digest("sk-guest")))))
    for port in (8001, 8002):
        deployed(host, dataclasses.replace(TINY, port=port), f"set PORT={port}")
    state = record(host)
    assert state.proved
    host.write(LAYOUT.unit, with_keys(host.read(LAYOUT.unit) or "", mine))
    save_state(host, LAYOUT, dataclasses.replace(state, proved=dataclasses.replace(state.proved, keys=mine)))
    deploy.rollback("qwen3vl", host, Heard(), lambda _: None)
    proved = record(host).proved
    assert proved
    assert (proved.settings.port, proved.keys, tuple(unit_keys(host, LAYOUT))) == (8001, mine, mine)


def test_a_rollback_writes_over_no_edit(host: Host, proofs: Proofs) -> None:
    deployed(host)
    deployed(host, dataclasses.replace(TINY, port=8001), "set PORT=8001")
    text = f"{host.read(LAYOUT.unit)}# by hand\n"
    host.write(LAYOUT.unit, text)
    with pytest.raises(Refused, match=r"qwen3vl\.service was edited by hand"):
        deploy.rollback("qwen3vl", host, Heard(), lambda _: None)
    assert host.read(LAYOUT.unit) == text


class Judging:
    """Whether a change stays that serves; and how often it was proved when that was asked."""

    def __init__(self, proofs: Proofs, fault: Exception | None = None) -> None:
        self.proofs, self.fault = proofs, fault
        self.asked: list[tuple[str, int]] = []

    def before(self) -> None:
        self.asked.append(("before", len(self.proofs.asked)))

    def after(self, target: Target) -> None:
        self.asked.append((f"after, at {target.settings.port}", len(self.proofs.asked)))
        if self.fault:
            raise self.fault


def test_a_change_is_judged_before_it_and_when_it_is_proved_and_goes_back_where_it_is_worse(
    host: Host, proofs: Proofs
) -> None:
    deployed(host)
    before = files(host)
    request = Request("set PORT=8001", dataclasses.replace(TINY, port=8001))
    judge = Judging(proofs, NotProved("it is slower"))
    with pytest.raises(InstallError, match=r"it is slower; qwen3vl\.service is back as it was"):
        deploy.change(request, host, Heard(), lambda _: None, judge)
    assert judge.asked == [("before", 1), ("after, at 8001", 2)]
    assert files(host) == before
    nothing_new = Judging(proofs)
    deploy.change(Request("set", TINY), host, Heard(), lambda _: None, nothing_new)
    assert nothing_new.asked == []


def test_without_an_earlier_generation_there_is_no_way_back(host: Host, proofs: Proofs) -> None:
    deployed(host)
    with pytest.raises(Refused, match="no earlier generation"):
        deploy.rollback("qwen3vl", host, Heard(), lambda _: None)


def test_a_change_that_is_not_proved_is_undone(host: Host, proofs: Proofs) -> None:
    deployed(host)
    before = files(host)
    proofs.faults = [NotProved("it does not answer")]
    with pytest.raises(InstallError, match=r"does not answer; qwen3vl\.service is back as it was"):
        deployed(host, dataclasses.replace(TINY, port=8001), "set PORT=8001")
    assert files(host) == before


def test_what_was_cut_off_is_undone_before_a_change_and_completed_by_a_deploy(host: Host, proofs: Proofs) -> None:
    deployed(host)
    save_state(host, LAYOUT, dataclasses.replace(record(host), pending="set PORT=8001"))
    deploy.settle("qwen3vl", "set", host, Heard())
    assert record(host).pending is None
    assert record(host).history[-1].outcome == "undone: cut off"
    asked = len(proofs.asked)
    deploy.settle("qwen3vl", "set", host, Heard())
    assert len(proofs.asked) == asked, "nothing was cut off"
    save_state(host, LAYOUT, dataclasses.replace(record(host), pending="set PORT=8001"))
    heard = Heard()
    deploy.deploy(Request("deploy", TINY), host, heard, lambda _: None)
    assert "set PORT=8001 was cut off; this run completes it" in heard.said
    assert record(host).history[-1].outcome == "proved"


def test_where_nothing_was_cut_off_nobody_who_changes_the_service_is_in_the_way(host: Host, proofs: Proofs) -> None:
    deployed(host)
    with changing(LAYOUT, "upgrade", host):
        deploy.settle("qwen3vl", "set", host, Heard())
        deploy.settle("no-such-service", "set", host, Heard())


def test_a_service_that_is_not_there_is_not_changed(host: Host) -> None:
    for refused in (
        lambda: deploy.change(Request("set", TINY), host, Heard(), lambda _: None),
        lambda: deploy.plan_change(Request("set", TINY), host, Heard()),
        lambda: deploy.capacity_of(Request("set-context", TINY), host, Heard()),
        lambda: rotate.list_keys("qwen3vl", host),
        lambda: remove.plan_uninstall("qwen3vl", host, purge=False),
        lambda: deploy.plan_rollback("qwen3vl", host),
    ):
        with pytest.raises(Refused, match="no service qwen3vl"):
            refused()


# What stays as it was proved, and what does not


def test_the_engine_stays_until_other_packages_are_asked_for(host: Host, proofs: Proofs, seen: Seen) -> None:
    deployed(host, dataclasses.replace(TINY, offline=False))
    first = record(host).proved
    assert first is not None
    seen.packages = "second"
    assert files_among(deployed(host, dataclasses.replace(TINY, offline=False))) == []
    done = deployed(host, dataclasses.replace(TINY, offline=False), "upgrade", new_packages=True)
    assert any(isinstance(change, InstallEngine) for change in done.changes)
    second = record(host).proved
    assert second is not None
    assert second.engine.id != first.engine.id
    assert (
        deploy.plan(
            Request("plan", dataclasses.replace(TINY, offline=False), resolve=True), host, Heard()
        ).want.target.engine.id
        == "newest"
    )
    seen.packages = "third"
    assert deployed(host, TINY, "upgrade", new_packages=True).want.target.engine == second.engine, (
        "offline nothing is asked"
    )


def test_what_was_proved_of_a_model_stays_until_something_else_is_asked_for(host: Host, proofs: Proofs) -> None:
    deployed(host, dataclasses.replace(TINY, tool_call_parser="hermes"))
    proved = record(host).proved
    assert proved is not None
    assert proved.profile.tool_parser == "hermes"
    done = deployed(host, dataclasses.replace(TINY, tool_call_parser="none"), "set TOOL_CALL_PARSER=none")
    assert done.want.target.profile.tool_parser is None
    assert "hermes" not in (host.read(LAYOUT.unit) or "")


# GPUs, and what fits


def test_the_gpus_that_are_chosen_are_said_and_stay_the_service_s_by_uuid(
    host: Host, proofs: Proofs, seen: Seen
) -> None:
    other = dataclasses.replace(H200, uuid="GPU-2", index=1)
    seen.facts = dataclasses.replace(CUDA, gpus=(H200, other))
    settings, heard = dataclasses.replace(TINY, gpus=("1",), cuda_toolkit="none"), Heard()
    plan = deploy.plan(Request("plan", settings), host, heard)
    target = plan.want.target
    assert target.engine.kind == "cuda"
    assert target.settings.gpus == ("GPU-2",)
    assert [gpu.uuid for gpu in target.gpus] == ["GPU-2"]
    assert [text for text in heard.said if text.startswith("GPUs: ")] == [f"GPUs: {other}"]
    left_open = deploy.plan(Request("plan", dataclasses.replace(settings, gpus=AUTO)), host, Heard()).want.target
    assert left_open.settings.gpus == AUTO
    assert len(left_open.gpus) == 1


def test_what_would_fit_follows_the_memory_of_what_computes(host: Host, proofs: Proofs, seen: Seen) -> None:
    deployed(host)
    before = files(host)

    def tokens() -> int:
        found = deploy.capacity_of(Request("set-context", TINY), host, Heard())
        assert found is not None
        return found.kv_tokens

    of_64 = tokens()
    seen.facts = dataclasses.replace(HEALTHY, node_memory=2 * HEALTHY.node_memory)
    assert tokens() > 1.9 * of_64
    assert files(host) == before


def test_a_gpu_that_does_not_say_how_much_memory_it_has_is_not_judged(host: Host, seen: Seen) -> None:
    plan = deploy.plan(Request("plan", TINY), host, Heard())
    on_gpu = dataclasses.replace(plan.want.target, engine=dataclasses.replace(plan.want.target.engine, kind="cuda"))
    device = fit._device(on_gpu, CUDA)
    assert device is not None
    assert (device.kind, device.memory, device.share, device.name) == (
        "cuda", H200.memory_total, TINY.gpu_memory_utilization, H200.name,
    )  # fmt: skip
    assert fit._device(on_gpu, dataclasses.replace(CUDA, gpus=(dataclasses.replace(H200, memory_total=0),))) is None
    assert fit._device(on_gpu, HEALTHY) is None


def test_dense_fp8_on_hopper_is_planned_with_a_compiler_and_a_throwaway_server_without(
    host: Host, seen: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `deploy` compiles before the first start is among its changes."""
    seen.facts = dataclasses.replace(CUDA, cxx_version=12)
    monkeypatch.setattr(toolkit, "has_compiler", lambda engine: True)
    blocks = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    monkeypatch.setattr(Config, "quantization", blocks)
    settings = dataclasses.replace(TINY, gpus=("GPU-1",))
    planned = deploy.plan(Request("plan", settings), host, Heard())
    assert planned.want.target.toolkit
    assert planned.want.target.toolkit.mode == "wheels"
    assert [change for change in planned.changes if change.to_json()["kind"] == "compile"]
    monkeypatch.setattr(toolkit, "has_compiler", lambda engine: False)
    assert deploy.plan(Request("plan", settings), host, Heard()).want.target.toolkit == Toolkit(), "it brings none"
    monkeypatch.setattr(toolkit, "has_compiler", lambda engine: True)
    state = State("qwen3vl")
    thrown = resolve(Request("test", settings), state, host, Heard(), for_real=False, throwaway=True)
    assert thrown.want.target.toolkit == Toolkit()


@pytest.mark.parametrize(
    ("asked", "expected", "said"),
    [
        (
            "host",
            Toolkit("host", "/usr/local/cuda", capabilities="10.0"),
            "CUDA toolkit: /usr/local/cuda; a first start compiles kernels, for minutes",
        ),
        ("none", Toolkit(attention="FLASH_ATTN"), "; attention by FLASH_ATTN"),
    ],
)
def test_a_compiler_is_for_the_gpus_that_were_chosen_and_it_is_said(
    host: Host, seen: Seen, asked: str, expected: Toolkit, said: str
) -> None:
    newer = dataclasses.replace(H200, uuid="GPU-2", index=1, capability=(10, 0))
    seen.facts = dataclasses.replace(CUDA, gpus=(H200, newer), nvcc=CUDA_13)
    settings, heard = dataclasses.replace(TINY, gpus=("1",), cuda_toolkit=asked), Heard()
    assert deploy.plan(Request("plan", settings), host, heard).want.target.toolkit == expected
    assert [text for text in heard.said if "CUDA toolkit: " in text and text.endswith(said)]
    other = dataclasses.replace(settings, gpus=("GPU-1",), cuda_toolkit="none")
    assert deploy.plan(Request("plan", other), host, Heard()).want.target.toolkit == Toolkit()


# Replicas


TWO = dataclasses.replace(TINY, replicas=2)


def asked_for_two(host: Host) -> tuple[Target, list[str]]:
    heard = Heard()
    target = resolve(Request("set REPLICAS=2", TWO), record(host), host, heard, for_real=False).want.target
    return target, [text for text in heard.said if "gateway" in text]


def test_what_an_admin_wrote_for_the_one_engine_is_said_to_be_the_gateways(host: Host, proofs: Proofs) -> None:
    deployed(host)
    host.write(handle(LAYOUT).drop_ins / "notes.txt", "")
    target, said = asked_for_two(host)
    assert [(replica.number, replica.port) for replica in target.replicas] == [(1, 20001), (2, 20002)]
    assert said == []
    host.write(handle(LAYOUT).drop_ins / "mine.conf", "[Service]\n")
    assert asked_for_two(host)[1] == [
        "/etc/systemd/system/qwen3vl.service.d is for the gateway from now on; what is for the engines belongs into "
        "/etc/systemd/system/qwen3vl@.service.d"
    ]
    assert deploy.plan(Request("plan", TINY), host, Heard()).want.target.replicas == ()
    save_state(host, LAYOUT, dataclasses.replace(record(host), proved=target))
    assert asked_for_two(host)[1] == [], "it has been the gateway's for long"


def test_a_replica_whose_own_drop_in_chooses_its_gpus_is_shown_them_all(host: Host, seen: Seen) -> None:
    seen.facts = dataclasses.replace(CUDA, gpus=(H200, dataclasses.replace(H200, uuid="GPU-2", index=1)))
    request = Request("plan", dataclasses.replace(TWO, cuda_toolkit="none"))

    def gpus() -> list[list[str]]:
        replicas = deploy.plan(request, host, Heard()).want.target.replicas
        return [[gpu.uuid for gpu in replica.gpus] for replica in replicas]

    assert gpus() == [["GPU-1"], ["GPU-2"]]
    host.write(
        Path("/etc/systemd/system/qwen3vl@2.service.d/mine.conf"), "[Service]\nEnvironment=CUDA_VISIBLE_DEVICES=0\n"
    )
    assert gpus() == [["GPU-1"], []]


# In the place of an old deployment


@pytest.mark.parametrize("active", [True, False])
def test_the_port_of_the_old_unit_is_free_once_that_makes_way(host: Host, seen: Seen, active: bool) -> None:
    seen.facts = dataclasses.replace(HEALTHY, port_holder=Process(7, "vllm", "old.service"))
    request = Request("adopt", TINY, former=Former("old.service", True, active))
    if active:
        assert deploy.plan(request, host, Heard()).changes
        return
    with pytest.raises(Refused, match="port 8000"):
        deploy.plan(request, host, Heard())


@pytest.mark.parametrize("was_ours", [True, False])
def test_directories_that_are_there_already_are_a_service_s_that_was_ours_and_let_go(
    host: Host, was_ours: bool
) -> None:
    host.make_dir(LAYOUT.cache_dir)
    request = Request("adopt", TINY, former=Former(LAYOUT.unit_name, True, True, ejected=was_ours))
    if was_ours:
        assert deploy.plan(request, host, Heard()).changes
        return
    with pytest.raises(Refused, match=f"{LAYOUT.cache_dir} exists already"):
        deploy.plan(request, host, Heard())


def test_what_is_managed_is_not_adopted_and_a_unit_is_given_back_whole(host: Host, proofs: Proofs) -> None:
    text = "[Service]\nExecStart=/usr/bin/vllm serve\n"
    host.write(LAYOUT.unit, text, 0o640)
    request = Request("adopt", TINY, former=Former(LAYOUT.unit_name, True, True, ((LAYOUT.unit, 0o640),)))
    proofs.faults = [NotProved("it does not answer")]
    with pytest.raises(InstallError, match=r"qwen3vl\.service is back as it was"):
        deploy.adopt(request, host, Heard(), lambda _: None)
    assert (host.read(LAYOUT.unit), host.mode(LAYOUT.unit)) == (text, 0o640)
    assert load_state(host, LAYOUT) is None
    shown: list[deploy.Deployed] = []
    deploy.adopt(request, host, Heard(), shown.append)
    assert [done.new_key is None for done in shown] == [False]
    assert record(host).former == request.former
    deploy.make_way("qwen3vl", host, Heard())
    assert record(host).proved is not None, "it was not cut off"
    with pytest.raises(Refused):
        deploy.adopt(request, host, Heard(), lambda _: None)


def test_an_adoption_that_was_cut_off_makes_way(host: Host, proofs: Proofs) -> None:
    former = Former("old.service", enabled=True, active=True)
    save_state(host, LAYOUT, State("qwen3vl", former=former, pending="adopt"))
    heard = Heard()
    deploy.make_way("qwen3vl", host, heard)
    assert heard.said == ["adopt was cut off; undoing it first: old.service comes back"]
    assert load_state(host, LAYOUT) is None


def test_a_deploy_first_gives_back_what_an_adoption_that_was_cut_off_had_taken(host: Host, proofs: Proofs) -> None:
    former = Former("old.service", enabled=True, active=True)
    save_state(host, LAYOUT, State("qwen3vl", former=former, pending="adopt"))
    heard = Heard()
    deploy.deploy(Request("deploy", TINY), host, heard, lambda _: None)
    assert "adopt was cut off; undoing it first: old.service comes back" in heard.said
    state = record(host)
    assert (state.former, [(event.what, event.outcome) for event in state.history]) == (None, [("deploy", "proved")])


# Away with it


def test_uninstall_takes_what_was_made_and_prune_what_nothing_needs(host: Host, proofs: Proofs, seen: Seen) -> None:
    deployed(host)
    first = record(host).proved
    seen.packages = "second"
    for packages in ("second", "third"):
        seen.packages = packages
        deployed(host, dataclasses.replace(TINY, offline=False), "upgrade", new_packages=True)
    assert first is not None
    assert remove.plan_prune(host)
    remove.prune(host, Heard())
    assert not host.exists(LAYOUT.engines / first.engine.id)
    assert remove.plan_prune(host) == []
    planned = remove.plan_uninstall("qwen3vl", host, purge=False)
    assert remove.uninstall("qwen3vl", host, Heard(), purge=False) == planned
    assert not host.exists(LAYOUT.unit)
    assert load_state(host, LAYOUT) is None
    with pytest.raises(Refused):
        remove.uninstall("qwen3vl", host, Heard(), purge=False)
