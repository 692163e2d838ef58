"""Weights from a hub that is real HTTP on localhost, and from directories."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from installer.base.errors import Exit
from installer.base.host import Host
from installer.base.report import Report
from installer.model import builtin
from installer.model.builtin import MakeBuiltin
from installer.model.checkpoint import check_access
from installer.spec.model import ModelError
from installer.weights.models import resolve
from installer.weights.wanted import is_present
from tests.kit.hub import Hub
from tests.kit.weights import LAYOUT, REPO, SHARD, WANTED, Counting, checkpoint, due, pull, served, settings, weights


def test_a_download_is_planned_to_the_byte_and_then_exactly_that(server: Hub, host: Host) -> None:
    files = checkpoint()
    commit = server.add(REPO, files)
    model = resolve(settings(server), host, LAYOUT)
    expected = sum(len(files[name]) for name in WANTED)
    path = LAYOUT.hub / "models--Org--Tiny/snapshots" / commit
    assert (model.path, model.commit, model.id, model.source) == (path, commit, REPO, "hub")
    assert not host.exists(LAYOUT.hub), "a plan writes nothing"

    (change,) = due(model, host)
    assert change.to_json() == {
        "kind": "download", "model": REPO, "commit": commit, "path": str(path), "bytes": expected, "files": len(WANTED),
    }  # fmt: skip
    report = Counting()
    change.apply(host, report)
    assert report.totals == [expected]
    assert sum(report.counts) == expected
    assert server.sent == expected
    assert served(host, model) == {name: files[name] for name in WANTED}


def test_the_cache_is_the_hub_clients_own(server: Hub, host: Host) -> None:
    from huggingface_hub import scan_cache_dir, snapshot_download

    server.add(REPO, checkpoint())
    model = pull(server, host)
    link = host.at(model.path) / SHARD
    assert link.readlink().parent == Path("../../blobs")
    sent = server.sent
    found = snapshot_download(
        REPO, cache_dir=host.at(LAYOUT.hub), endpoint=server.url, token=False, allow_patterns=sorted(WANTED)
    )
    assert (Path(found), server.sent) == (host.at(model.path), sent)
    scanned = scan_cache_dir(host.at(LAYOUT.hub))
    assert [repo.repo_id for repo in scanned.repos] == [REPO]
    assert not scanned.warnings


def test_any_user_may_read_it_whatever_the_umask(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())
    before = os.umask(0o077)
    try:
        model = pull(server, host)
    finally:
        os.umask(before)
    assert check_access(model.path, host) == []


def test_a_complete_known_commit_asks_nobody(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())
    model = pull(server, host)
    server.add(REPO, checkpoint(seed=2))
    asked = len(server.requests)
    again = resolve(settings(server), host, LAYOUT, model.commit)
    assert (again.commit, again.bytes_missing, due(again, host)) == (model.commit, 0, [])
    assert len(server.requests) == asked


def test_a_known_commit_stays_although_the_branch_moved(server: Hub, host: Host) -> None:
    first = server.add(REPO, checkpoint())
    model = resolve(settings(server), host, LAYOUT)
    server.add(REPO, checkpoint(seed=2))
    again = resolve(settings(server), host, LAYOUT, first)
    assert again == model
    (change,) = due(again, host)
    change.apply(host, Report())
    assert served(host, again)[SHARD] == checkpoint()[SHARD]


def test_a_new_commit_fetches_only_what_differs(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())
    pull(server, host)
    second = server.add(REPO, checkpoint() | {"config.json": builtin.files()["config.json"] + b" "})
    sent = server.sent
    model = pull(server, host)
    assert model.commit == second
    assert server.sent - sent == len(builtin.files()["config.json"]) + 1
    assert is_present(model, host)


def test_a_branch_a_tag_and_a_commit_can_be_asked_for(server: Hub, host: Host) -> None:
    main = server.add(REPO, checkpoint())
    pr = server.add(REPO, checkpoint(seed=3), ref="refs/pr/1")
    assert pull(server, host, revision="refs/pr/1").commit == pr
    assert resolve(settings(server, revision=main), host, LAYOUT).commit == main


def test_equal_files_are_fetched_once(server: Hub, host: Host) -> None:
    same = weights(5, 200_000)
    files = checkpoint() | dict.fromkeys((SHARD, SHARD.replace("00001-", "00002-")), same)
    server.add(REPO, files)
    report = Counting()
    model = pull(server, host, report)
    assert sum(report.counts) == report.totals[0] == model.bytes_missing
    assert server.sent == sum(len(files[name]) for name in WANTED) - len(same)
    assert is_present(model, host)


def test_offline_uses_what_is_there_and_asks_nobody(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())
    model = pull(server, host)
    asked = len(server.requests)
    assert resolve(settings(server, offline=True), host, LAYOUT).path == model.path
    (host.at(model.path) / SHARD).resolve().unlink()
    with pytest.raises(ModelError, match=r"offline.*missing"):
        resolve(settings(server, offline=True), host, LAYOUT)
    with pytest.raises(ModelError, match="not in the cache") as caught:
        resolve(settings(server, offline=True, model="Org/Other"), host, LAYOUT)
    assert caught.value.exit_code == Exit.MODEL
    assert len(server.requests) == asked


def test_offline_accepts_a_cache_that_another_client_filled(server: Hub, host: Host) -> None:
    from huggingface_hub import snapshot_download

    files = {name: content for name, content in checkpoint().items() if name in WANTED}
    commit = server.add(REPO, files)
    snapshot_download(REPO, cache_dir=host.at(LAYOUT.hub), endpoint=server.url, token=False)
    asked = len(server.requests)
    model = resolve(settings(server, offline=True), host, LAYOUT)
    assert model.commit == commit
    (check,) = due(model, host, offline=True)
    assert check.describe().startswith("check Org/Tiny")
    check.apply(host, Report())
    assert (due(model, host, offline=True), len(server.requests)) == ([], asked)


def test_a_model_read_back_from_state_is_still_known_to_be_there(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())
    remembered = replace(pull(server, host), files=())
    assert due(remembered, host) == []
    (host.at(remembered.path) / SHARD).resolve().unlink()
    (change,) = due(remembered, host)
    change.apply(host, Report())
    assert is_present(remembered, host)


# Directories and the built-in model


def test_a_local_directory_is_served_where_it_lies(host: Host) -> None:
    host.make_dir(Path("/models/Org/Name"))
    model = resolve(settings(model="/models/Org/Name"), host, LAYOUT)
    assert (model.path, model.source, model.commit, model.id) == (Path("/models/Org/Name"), "local", None, "Name")
    assert due(model, host) == []


def test_a_relative_path_below_the_models_directory_comes_before_the_hub(server: Hub, host: Host) -> None:
    host.make_dir(Path("/models/Org/Tiny"))
    host.make_dir(Path("/models/a/b/c/d"))
    assert resolve(settings(server, models_dir="/models"), host, LAYOUT).source == "local"
    deep = resolve(settings(server, models_dir="/models", model="a/b/c/d"), host, LAYOUT)
    assert deep.path == Path("/models/a/b/c/d")
    assert server.requests == []
    server.add("Org/Absent", checkpoint())
    assert resolve(settings(server, models_dir="/models", model="Org/Absent"), host, LAYOUT).source == "hub"


@pytest.mark.parametrize("model", ["/models/None", "./nothing/here", "a/b/c"])
def test_a_directory_that_is_not_there(host: Host, model: str) -> None:
    with pytest.raises(ModelError):
        resolve(settings(model=model), host, LAYOUT)
    with pytest.raises(ModelError, match="no model directory"):
        resolve(settings(model=model, models_dir="/models"), host, LAYOUT)


def test_the_builtin_model_is_made_once(host: Host) -> None:
    model = resolve(settings(model="builtin:tiny"), host, LAYOUT)
    assert (model.id, model.path) == ("builtin:tiny", LAYOUT.builtin_models / "tiny")
    assert due(model, host) == [MakeBuiltin(model.path)]
    MakeBuiltin(model.path).apply(host, Report())
    assert due(model, host) == []
