"""What a service consists of, by what lies in its engine; that of a real one is in tests/vllm/test_service_real.py."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from installer.base.host import Host
from installer.base.layout import Layout
from installer.cli import cli
from installer.look import sbom
from installer.spec.records import save_state
from installer.spec.settings import Settings
from installer.spec.state import State
from installer.spec.target import Target
from tests.kit.targets import COMMIT, boxed, target

LAYOUT = Layout("qwen3vl")
DIGEST = "ab" * 32
LOCK = f"plain==1.0 --hash=sha256:{DIGEST}\nlocal-build==2.0+cpu --hash=sha256:{DIGEST} --hash=sha256:{'cd' * 32}\n"
# By package: what its METADATA says beside name and version.
PACKAGES = {
    "plain-1.0": "License-Expression: MIT\nRequires-Dist: Local_Build[x]>=1\nRequires-Dist: other; extra == 'all'\n",
    "Local.Build-2.0+cpu": "License: a text\n of many\n lines\nClassifier: License :: OSI Approved :: BSD License\n",
    "other-3": "Summary: \x1b[2J{says} \u4e2d\nLicense: Apache 2\n",
    "silent-4": "",
}


def installed(host: Host, what: Target) -> None:
    place = LAYOUT.engines / what.engine.id
    for package, said in PACKAGES.items():
        name, _, version = package.rpartition("-")
        path = place / f"lib/python3.11/site-packages/{package}.dist-info/METADATA"
        host.write(path, f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{said}\nA text: of it\n")
    host.write(place / "pyvenv.cfg", "home = /usr/bin\nversion_info = 3.11.2\n")
    host.write(place / "bin/python", "")
    host.write(place / ".complete", "{}")
    os.utime(host.at(place / ".complete"), (86400, 86400))


def made(host: Host) -> Any:
    text = sbom.of_service(LAYOUT.service, host)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    return json.loads(text)


@pytest.fixture
def listed(host: Host) -> Any:
    what = target()
    what = dataclasses.replace(what, engine=dataclasses.replace(what.engine, lock=LOCK))
    save_state(host, LAYOUT, State(LAYOUT.service, proved=what))
    installed(host, what)
    return made(host)


def test_it_names_all_that_is_installed_with_licences_checksums_and_needs(listed: Any) -> None:
    parts = {part["bom-ref"]: part for part in listed["components"]}
    plain, local = parts["pkg:pypi/plain@1.0"], parts["pkg:pypi/local-build@2.0%2Bcpu"]
    assert {part["name"] for part in parts.values() if part["type"] == "library"} == {
        "plain", "local-build", "other", "silent",
    }  # fmt: skip
    assert plain["licenses"] == [{"expression": "MIT"}]
    assert local["licenses"] == [{"license": {"name": "BSD License"}}], "a whole text is no name"
    assert parts["pkg:pypi/other@3"]["licenses"] == [{"license": {"name": "Apache 2"}}]
    assert parts["pkg:pypi/silent@4"]["licenses"] == []
    (source,) = local["externalReferences"]
    assert [each["content"] for each in source["hashes"]] == [DIGEST, "cd" * 32], "each that the lock allows"
    assert parts["pkg:pypi/other@3"]["externalReferences"] == []
    needed = {each["ref"]: each["dependsOn"] for each in listed["dependencies"]}
    assert needed["pkg:pypi/plain@1.0"] == ["pkg:pypi/local-build@2.0%2Bcpu"]
    assert set(needed["engine"]) == parts.keys()


def test_python_the_model_and_the_moment_are_those_of_the_engine(listed: Any, host: Host) -> None:
    kinds = {part["type"]: part for part in listed["components"]}
    assert (kinds["platform"]["name"], kinds["platform"]["version"]) == ("CPython", "3.11.2")
    model = kinds["machine-learning-model"]
    assert (model["name"], model["version"]) == (Settings.model, COMMIT)
    assert model["purl"] == f"pkg:huggingface/{Settings.model}@{COMMIT}"
    assert listed["metadata"]["component"]["version"] == Settings.vllm_version
    assert listed["metadata"]["timestamp"] == "1970-01-02T00:00:00Z", "the same text, whenever it is asked for"


def run(*words: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> Result:
    monkeypatch.setattr("installer.base.host.Host", lambda: Host(root))
    return CliRunner().invoke(cli, ["sbom", *words])


def test_it_goes_to_a_file_and_over_none_that_is_there(
    listed: Any, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = sbom.of_service(LAYOUT.service, host)
    assert run(root=host.root, monkeypatch=monkeypatch).stdout == text
    assert run("--force", root=host.root, monkeypatch=monkeypatch).exit_code != 0
    file = Path("/there.cdx.json")
    assert run("-o", str(file), root=host.root, monkeypatch=monkeypatch).exit_code == 0
    assert host.read(file) == text
    assert run("-o", str(file), root=host.root, monkeypatch=monkeypatch).exit_code != 0


def test_what_an_image_holds_is_said_by_who_made_it(host: Host) -> None:
    save_state(host, LAYOUT, State(LAYOUT.service, proved=boxed("cpu", Settings())))
    with pytest.raises(sbom.Refused, match="is served from a container image") as caught:
        made(host)
    assert caught.value.hint == f"sudo podman image inspect {'1f' * 32}"


@pytest.mark.parametrize("gone", [".complete", "bin/python"])
def test_an_engine_that_is_gone_is_said_so(host: Host, gone: str) -> None:
    what = target()
    save_state(host, LAYOUT, State(LAYOUT.service, proved=what))
    installed(host, what)
    place = LAYOUT.engines / what.engine.id
    host.remove(place / gone)
    with pytest.raises(sbom.Refused, match=f"the engine {place} is missing or not complete") as caught:
        made(host)
    assert caught.value.hint == "sudo vllm-install deploy --service qwen3vl"
