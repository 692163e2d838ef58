"""From what was found of an old deployment to the request for ours: its name, unit, keys, what comes along."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from installer.adoption.old import Old
from installer.base.changes import Remove, Write
from installer.base.host import Host
from installer.base.layout import Layout
from installer.flow import adopt
from installer.flow.request import KeyChoice
from installer.spec.former import Former
from installer.spec.keys import Key, digest

LAYOUT = Layout("llm")
KEY = "sk-old-5b8d0f3a9c-Xk2QzVwHj7RmTbNp"
LOADED = {"LoadState": "loaded", "UnitFileState": "enabled", "ActiveState": "active", "TimeoutStopUSec": "1min 30s"}
Knows = Callable[[str, dict[str, str]], None]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture
def knows(monkeypatch: pytest.MonkeyPatch) -> Knows:
    """What systemd knows of a unit; of others it says that they are not there."""
    known: dict[str, dict[str, str]] = {}

    def shown(_: Host, unit: str, *names: str) -> dict[str, str]:
        return {name: known.get(unit, {"LoadState": "not-found"}).get(name, "") for name in names}

    monkeypatch.setattr(adopt, "unit_properties", shown)
    return known.__setitem__


def old(*words: str, **known: object) -> Old:
    return Old(("org/model", *words), **known)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("llm", "llm"),
        ("llm.service", "llm"),
        ("/etc/systemd/system/llm.service", "llm"),
        ("/usr/lib/systemd/system/llm.service", "llm"),
        ("/srv/llm.service", None),  # a file of that name is no unit that systemd knows
        ("./llm", None),
        ("other", None),
        ("Llm", None),  # no service of ours is called so
        ("vllm-install-weights", None),
        ("-", None),
    ],
)
def test_a_service_is_called_as_its_unit_was(host: Host, knows: Knows, source: str, name: str | None) -> None:
    for unit in ("llm.service", "Llm.service", "vllm-install-weights.service"):
        knows(unit, LOADED)
    assert adopt.service_of(source, host) == name


def test_the_old_unit_makes_way_as_it_was_found(host: Host, knows: Knows) -> None:
    knows("llm.service", LOADED)
    host.write(LAYOUT.unit, "[Service]\nExecStart=/v/vllm serve org/model\n", 0o640)
    found = old(unit="llm.service", files=(LAYOUT.unit,), environment={"NCCL_DEBUG": "INFO"}, is_ejected=True)
    request = adopt.propose(found, "llm", {}, {}, host, new_key=False).request
    assert (request.verb, request.settings.service, request.settings.model) == ("adopt", "llm", "org/model")
    assert request.former == Former("llm.service", True, True, ((LAYOUT.unit, 0o640),), ejected=True)
    assert request.environment == (("NCCL_DEBUG", "INFO"),)
    knows("llm.service", {**LOADED, "UnitFileState": "disabled", "ActiveState": "inactive"})
    again = adopt.propose(replace(found, is_ejected=False), "llm", {}, {}, host, new_key=False)
    assert again.request.former == Former("llm.service", False, False, ((LAYOUT.unit, 0o640),))


def test_what_was_no_unit_makes_way_for_nobody(host: Host, knows: Knows) -> None:
    proposal = adopt.propose(old(), "llm", {}, {}, host, new_key=False)
    assert proposal.request.former is None
    assert not [line for line in proposal.adoption.clients if "to stop" in line]


def test_keys_that_clients_have_stay_theirs_unless_a_new_one_is_asked_for(host: Host) -> None:
    typed = old("--api-key", KEY, KEY[::-1])
    known = old(keys=(Key("guest", digest("sk-guest")),))  # by their digests, of a service that was let go

    def choice(found: Old, *, new_key: bool = False) -> KeyChoice:
        return adopt.propose(found, "llm", {}, {}, host, new_key=new_key).request.keys

    assert choice(typed) == KeyChoice(KEY, further=(KEY[::-1],))
    assert choice(known) == KeyChoice(held=known.keys)
    assert choice(typed, new_key=True) == choice(known, new_key=True) == KeyChoice()


def test_weights_that_the_old_service_fetched_are_looked_for(host: Host) -> None:
    host.make_dir(Path("/srv/hub/models--org--model"))
    found = old(environment={"HF_HUB_CACHE": "/srv/hub"})
    assert adopt.propose(found, "llm", {}, {}, host, new_key=True).request.caches == (Path("/srv/hub"),)


def test_only_what_differs_from_the_defaults_is_shown(host: Host) -> None:
    proposal = adopt.propose(old("--port", "9001"), "llm", {"PORT": "9003"}, {"port": "9002"}, host, new_key=True)
    assert proposal.settings == {
        "MODEL_NAME": "org/model", "MAX_MODEL_LEN": "auto", "GPU_MEMORY_UTILIZATION": "0.92", "PORT": "9002",
        "TOOL_CALL_PARSER": "none", "REASONING_PARSER": "none",
    }  # fmt: skip


def test_the_difference_leads_from_what_ran_to_our_unit_and_shows_no_key(host: Host) -> None:
    before = f"ExecStart=vllm serve org/model --api-key {KEY}\nRestart=always\n"
    proposal = adopt.propose(old("--api-key", KEY, shown=before, texts=(before,)), "llm", {}, {}, host, new_key=False)
    ours = "ExecStart=/opt/python vllm_launcher.py\nRestart=always\n"
    changes = [Remove(LAYOUT.unit), Write(Path("/etc/other"), "nothing"), Write(LAYOUT.unit, ours)]
    assert proposal.difference(list(changes)).splitlines() == [
        "--- before", "+++ /etc/systemd/system/llm.service", "@@ -1,2 +1,2 @@",
        "-ExecStart=vllm serve org/model --api-key [secret]", "+ExecStart=/opt/python vllm_launcher.py",
        " Restart=always",
    ]  # fmt: skip
    assert proposal.difference([]).splitlines()[-1] == "-Restart=always"
