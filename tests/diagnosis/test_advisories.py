"""Known flaws of an engine's packages: which versions have them, what doctor says, and who may bring a newer list."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from installer.base.datafile import DataError
from installer.base.errors import InstallError
from installer.base.host import Host
from installer.base.layout import ADVISORIES
from installer.diagnosis import advisories
from installer.diagnosis.advisories import NAMESPACE, load, update
from installer.spec.records import managed, save_state
from tests.diagnosis import test_doctor
from tests.diagnosis.test_doctor import LAYOUT, Tree

tree = test_doctor.tree
ONE = {
    "id": "GHSA-2222-3333-4444", "also": ["CVE-2099-1234"], "package": "vllm", "introduced": "0.27.0",
    "fixed": "0.99.0",
    "severity": "high", "summary": "it falls over", "source": "https://example.org/a",
}  # fmt: skip


def serves_with(tree: Tree, *packages: str) -> None:
    state = managed(tree.host, LAYOUT)
    assert state.proved
    engine = dataclasses.replace(state.proved.engine, lock="\n".join(packages) + "\n")
    save_state(tree.host, LAYOUT, dataclasses.replace(state, proved=dataclasses.replace(state.proved, engine=engine)))


def said(tree: Tree) -> dict[str, Any]:
    return {each.id: each for each in tree.findings() if each.id.startswith("advisory-")}


def test_an_old_engine_s_flaws_are_named_with_the_command_that_helps(tree: Tree) -> None:
    serves_with(tree, "vllm==0.30.0+cpu", "torch==2.9.0", "numpy==1.0")
    found = said(tree)
    assert found.keys() == {"advisory-vllm", "advisory-torch"}
    assert "GHSA-h3rc-6mm3-gc2m (high)" in found["advisory-vllm"].cause
    assert "GHSA-99f2-hwrc-gvq8" not in found["advisory-vllm"].cause, "mended in 0.28.0"
    assert found["advisory-vllm"].commands == ("sudo vllm-install set VLLM_VERSION=0.32.0 --service qwen3vl",)
    assert "GHSA-vgrw-7cvw-pwgx/CVE-2025-2999" in found["advisory-torch"].cause
    assert {each.severity for each in found.values()} == {"note"}


def test_of_what_this_tool_installs_today_nothing_is_known(tree: Tree) -> None:
    serves_with(tree, "vllm==0.32.0", "sglang==0.5.23", "torch==2.11.0")
    assert said(tree) == {}


@pytest.mark.parametrize(
    ("version", "has_it"),
    [
        ("0.7.2", False),
        ("0.7.3", True),
        ("0.30.0.post1", True),
        ("0.31.0rc1", True),
        ("0.31.0", False),
        ("1.0.0", False),
    ],
)
def test_a_flaw_is_in_the_versions_from_its_beginning_to_its_end(tmp_path: Path, version: str, has_it: bool) -> None:
    found = next(each for each in load(Host(tmp_path)).advisories if each.id == "GHSA-h3rc-6mm3-gc2m")
    assert found.affects(version) == has_it


# A newer list


@pytest.fixture
def key(tree: Tree, tmp_path: Path) -> Path:
    program = shutil.which("ssh-keygen")
    assert program
    tree.host.make_dir(Path("/usr/bin"))
    tree.host.at(Path("/usr/bin/ssh-keygen")).symlink_to(program)
    for name in ("us", "others"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    (tmp_path / "signers").write_text(f"us {(tmp_path / 'us.pub').read_text()}")
    return tmp_path / "us"


def signed(key: Path, issued: str = "2099-01-01", namespace: str = NAMESPACE, **changed: object) -> Path:
    path = key.parent / "flaws.json"
    path.write_text(json.dumps({"issued": issued, "advisories": [{**ONE, **changed}]}))
    path.with_name("flaws.json.sig").unlink(missing_ok=True)
    command = ["ssh-keygen", "-q", "-Y", "sign", "-f", key, "-n", namespace, path]
    subprocess.run(command, check=True, capture_output=True)
    return path


def test_a_newer_list_that_was_signed_takes_the_place_of_ours(tree: Tree, key: Path) -> None:
    assert update(signed(key), key.parent / "signers", tree.host)[1] == "us"
    serves_with(tree, "vllm==0.32.0")
    found = said(tree)["advisory-vllm"]
    assert "GHSA-2222-3333-4444/CVE-2099-1234 (high)" in found.cause
    assert found.commands == ("sudo vllm-install set VLLM_VERSION=0.99.0 --service qwen3vl",)
    with pytest.raises(InstallError, match="is of 2098-01-01"):
        update(signed(key, "2098-01-01"), key.parent / "signers", tree.host)


def test_a_list_that_was_not_signed_for_this_by_one_of_these_changes_nothing(tree: Tree, key: Path) -> None:
    signers = key.parent / "signers"
    changed = signed(key)
    changed.write_text(changed.read_text().replace("0.99.0", "0.28.0"))
    with pytest.raises(InstallError, match="signed by nobody"):
        update(changed, signers, tree.host)
    with pytest.raises(InstallError, match="signed by nobody"):
        update(signed(key.with_name("others")), signers, tree.host)
    with pytest.raises(InstallError, match="signed by nobody"):
        update(signed(key, namespace="vllm-install-bundle"), signers, tree.host)
    signed(key).with_name("flaws.json.sig").unlink()
    with pytest.raises(InstallError, match="cannot be read"):
        update(key.parent / "flaws.json", signers, tree.host)
    assert not tree.host.exists(ADVISORIES)


@pytest.mark.parametrize(
    "changed",
    [
        {"id": "GHSA-1"}, {"id": "x\x1b[2J"}, {"also": ["CVE-1"]}, {"package": "numpy"}, {"fixed": "soon"},
        {"introduced": "0.1; rm"}, {"severity": "dire"}, {"summary": "a\nb"}, {"summary": "a" * 201},
        {"source": "http://x.org"}, {"source": "https://x.org/ $(id)"}, {"more": "x"},
    ],
)  # fmt: skip
def test_what_is_no_advisory_is_refused_also_where_it_was_signed(
    tree: Tree, key: Path, changed: dict[str, object]
) -> None:
    with pytest.raises(DataError):
        update(signed(key, **changed), key.parent / "signers", tree.host)
    assert not tree.host.exists(ADVISORIES)


def test_what_ships_is_in_order() -> None:
    found = advisories.load(Host(Path("/nonexistent"))).advisories
    assert len({each.id for each in found}) == len(found) > 0
    assert {each.package for each in found} == set(advisories.PACKAGES)
