"""What the hub refuses, and what is refused before it is asked."""

from __future__ import annotations

import subprocess

import pytest

from installer.base.host import Host
from installer.spec.model import ModelError
from installer.weights import models
from installer.weights.models import resolve
from tests.kit.hub import Hub
from tests.kit.weights import LAYOUT, REPO, SHARD, TOKEN, checkpoint, refusal, resolved_and_pulled, settings


def test_an_unknown_model(server: Hub, host: Host) -> None:
    error = refusal(server, host)
    assert "has no model Org/Tiny" in error.message
    server.fail("/api/models", status=401, body=b'{"error": "Invalid username or password."}')
    assert "has no model Org/Tiny" in refusal(server, host).message


def test_an_unknown_revision(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())
    assert "no revision 'v9'" in refusal(server, host, revision="v9").message


def test_a_gated_model_is_refused_before_any_byte(server: Hub, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add(REPO, checkpoint())
    server.repos[REPO].gated, server.repos[REPO].token = True, TOKEN
    with pytest.raises(ModelError, match="accepted its terms") as caught:
        resolve(settings(server), host, LAYOUT)
    assert f"{server.url}/{REPO}" in caught.value.hint
    assert "HF_TOKEN" in caught.value.hint
    monkeypatch.setenv("HF_TOKEN", "hf_wrong" + TOKEN)
    assert "token in use" in refusal(server, host).message
    assert server.sent == 0


def test_the_token_opens_the_gate_and_goes_to_the_hub_alone(
    server: Hub, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add(REPO, checkpoint())
    server.repos[REPO].gated, server.repos[REPO].token = True, TOKEN
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    resolved_and_pulled(server, host)
    seen = {r.server: "authorization" in r.headers for r in server.requests}
    assert seen == {"hub": True, "cdn": False}
    kept = [path for path in host.root.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert kept == []


def test_access_withdrawn_in_the_middle(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())
    server.fail("/resolve/", status=403, headers={"X-Error-Code": "GatedRepo"}, times=None)
    assert "accepted its terms" in refusal(server, host).message


def test_no_network(server: Hub, host: Host) -> None:
    error = refusal(server, host, hf_endpoint="http://127.0.0.1:9")
    assert "no answer from http://127.0.0.1:9" in error.message
    assert "--hf-endpoint" in error.hint


def test_a_password_in_the_endpoint_is_not_shown(server: Hub, host: Host) -> None:
    error = refusal(server, host, hf_endpoint="http://me:hidden@127.0.0.1:9")
    assert "hidden" not in error.message + error.hint


@pytest.mark.parametrize(
    "body", [b"<html>hello</html>", b"{}", b'{"id": "x", "sha": "../../x", "siblings": []}', b"[]"]
)
def test_an_endpoint_that_is_no_hub(server: Hub, host: Host, body: bytes) -> None:
    server.fail("/api/models", status=200, body=body, headers={"Content-Type": "application/json"})
    assert "does not answer as a model hub" in refusal(server, host).message


def test_a_hub_that_stays_broken(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())
    server.fail("/lfs/", status=500, times=None)
    assert "status 500" in refusal(server, host).message
    server.faults.clear()
    server.fail("/lfs/", cut=0, times=None)
    assert "no answer" in refusal(server, host).message


def test_a_file_that_is_listed_but_not_there(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())
    server.fail("/resolve/.*/config.json", status=404, headers={"X-Error-Code": "EntryNotFound"}, times=None)
    assert "lists a file" in refusal(server, host).message


def test_a_repository_without_all_its_shards(server: Hub, host: Host) -> None:
    files = checkpoint()
    del files[SHARD]
    server.add(REPO, files)
    assert f"{SHARD} is missing" in refusal(server, host).message


def test_a_disk_too_small_is_known_before_the_first_byte(
    server: Hub, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add(REPO, checkpoint())
    monkeypatch.setattr(models, "HEADROOM", 1 << 60)
    assert "has only" in refusal(server, host).message
    assert server.sent == 0


@pytest.mark.root
def test_a_disk_that_fills_up_meanwhile(server: Hub, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add(REPO, checkpoint())
    host.make_dir(LAYOUT.hub)
    disk = host.at(LAYOUT.hub)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k,mode=755", "small", disk], check=True)
    try:
        assert "has only" in refusal(server, host).message
        monkeypatch.setattr(models, "HEADROOM", -(1 << 60))
        assert "disk is full" in refusal(server, host).message
        subprocess.run(["mount", "-o", "remount,size=2m", disk], check=True)
        sent = server.sent
        missing = resolve(settings(server), host, LAYOUT).bytes_missing
        resolved_and_pulled(server, host)
        assert server.sent - sent == missing
    finally:
        subprocess.run(["umount", disk], check=True)
