"""Weights in another hub cache of this host, made by the hub's own client: taken over, and never fetched again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

from installer.base.errors import InstallError, Refused
from installer.base.host import Host
from installer.base.report import Report
from installer.model.model_about import SMALL
from installer.spec.model import Model
from installer.weights import elsewhere
from installer.weights.about import of_model
from installer.weights.models import changes, resolve
from tests.kit.hub import Hub
from tests.kit.weights import LAYOUT, REPO, SHARD, WANTED, checkpoint, served, settings

OLD = Path("/home/ana/.cache/huggingface/hub")
FOLDER = OLD / "models--Org--Tiny"
SOMEBODY = 4711


@pytest.fixture
def old(server: Hub, host: Host) -> str:
    """What the hub's client left there, and the commit."""
    commit = server.add(REPO, checkpoint())
    snapshot_download(REPO, cache_dir=host.at(OLD), endpoint=server.url, token=False)
    server.add(REPO, checkpoint(seed=2))  # what a fetch would get today
    return commit


def taken(server: Hub, host: Host, **what: object) -> Model:
    chosen = settings(server, **what)
    model = resolve(chosen, host, LAYOUT, report=Report(), caches=(OLD,))
    for change in changes(model, host, chosen, caches=(OLD,)):
        change.apply(host, Report())
    return model


def blob(host: Host, model: Model, name: str = SHARD) -> Path:
    return host.at(model.path / name).resolve()


def the_old(host: Host, model: Model, name: str = SHARD) -> Path:
    return host.at(FOLDER / "blobs") / blob(host, model, name).name


def test_the_commit_that_was_served_stays_and_none_of_it_is_fetched(server: Hub, host: Host, old: str) -> None:
    sent = server.sent
    model = taken(server, host)
    assert (model.commit, server.sent - sent) == (old, 0)
    assert served(host, model) == {name: checkpoint()[name] for name in WANTED}
    assert list(changes(model, host, settings(server), caches=(OLD,))) == [], "every byte was seen to be right"


def test_before_it_is_taken_its_small_files_are_read_there(server: Hub, host: Host, old: str) -> None:
    chosen = settings(server)
    model = resolve(chosen, host, LAYOUT, caches=(OLD,))
    sent = server.sent
    about = of_model(model, host, chosen, Report(), (OLD,))
    assert (about.architectures, server.sent - sent) == (("Qwen3ForCausalLM",), 0)
    assert not host.exists(LAYOUT.hub), "a plan writes nothing"
    assert set(SMALL) & WANTED


def test_without_a_hub_the_old_cache_is_enough(server: Hub, host: Host, old: str) -> None:
    for what in ({"offline": True}, {"hf_endpoint": "http://127.0.0.1:9"}):
        model = taken(server, host, **what)
        assert (model.commit, served(host, model).keys()) == (old, WANTED)
        host.remove(LAYOUT.hub)


def test_what_root_alone_can_change_gets_another_name_and_any_other_file_is_copied(
    server: Hub, host: Host, old: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = taken(server, host)
    assert blob(host, model).samefile(the_old(host, model))
    host.remove(LAYOUT.hub)
    for path in host.at(FOLDER / "blobs").iterdir():
        path.chmod(0o664)
    model = taken(server, host)
    assert not blob(host, model).samefile(the_old(host, model))
    assert blob(host, model).stat().st_mode & 0o777 == 0o644
    host.remove(LAYOUT.hub)
    for path in host.at(FOLDER / "blobs").iterdir():
        path.chmod(0o644)
    monkeypatch.setattr(os, "geteuid", lambda: SOMEBODY)  # so they are another user's
    assert not blob(host, taken(server, host)).samefile(the_old(host, model))


def _wrong(path: Path) -> None:
    path.write_bytes(b"x" * path.stat().st_size)


def _link(path: Path) -> None:
    path.rename(path.with_suffix(".away"))
    path.symlink_to(path.with_suffix(".away"))


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _longer(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


@pytest.mark.parametrize("spoil", [_wrong, _link, _pipe, _longer, Path.unlink])
def test_what_is_not_the_file_itself_or_not_right_is_fetched(
    server: Hub, host: Host, old: str, spoil: Callable[[Path], None]
) -> None:
    model = resolve(settings(server), host, LAYOUT, caches=(OLD,))
    digest = next(file.digest for file in model.files if file.name == SHARD)
    spoil(host.at(FOLDER / "blobs" / digest))
    sent = server.sent
    model = taken(server, host)
    assert server.sent - sent == len(checkpoint()[SHARD])
    assert served(host, model)[SHARD] == checkpoint()[SHARD]
    assert not [path for path in host.children(LAYOUT.hub / FOLDER.name / "blobs") if path.name.startswith(".")]


def test_a_link_of_another_user_leads_nowhere(
    server: Hub, host: Host, old: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = host.at(OLD)
    real.rename(real.with_name("hub.away"))
    real.symlink_to("hub.away")
    assert resolve(settings(server), host, LAYOUT, caches=(OLD,)).commit == old, "root's own leads there"
    monkeypatch.setattr(os, "geteuid", lambda: SOMEBODY)
    os.lchown(real, 1, 1)
    assert resolve(settings(server), host, LAYOUT, caches=(OLD,)).commit != old


@pytest.mark.parametrize("word", ["", "main", "../../x", "0" * 39, "0" * 4000])
def test_a_reference_that_is_none_means_nothing(server: Hub, host: Host, old: str, word: str) -> None:
    host.at(FOLDER / "refs/main").write_text(word)
    assert resolve(settings(server), host, LAYOUT, caches=(OLD,)).commit != old


def test_the_old_cache_says_nothing_about_another_revision(server: Hub, host: Host, old: str) -> None:
    other = server.add(REPO, checkpoint(seed=5), ref="refs/pr/1")
    assert taken(server, host, revision="refs/pr/1").commit == other
    with pytest.raises(InstallError, match="cannot be used offline"):
        resolve(settings(server, revision="v9", offline=True), host, LAYOUT, caches=(OLD,))


@pytest.mark.parametrize("kind", ["links", "files", "directories", "nested"])
def test_a_cache_with_names_without_an_end_is_refused(
    server: Hub, host: Host, old: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner may make millions; what is above the bound is neither read on nor left out in silence."""
    monkeypatch.setattr(elsewhere, "MOST_NAMES", 40)
    snapshot = host.at(FOLDER / "snapshots" / old)
    shard = os.readlink(snapshot / SHARD)
    assert resolve(settings(server), host, LAYOUT, caches=(OLD,)).commit == old
    for number in range(40):
        path = snapshot / f"{number % 8}/{number}" if kind == "nested" else snapshot / str(number)
        if kind in ("links", "nested"):
            path.parent.mkdir(exist_ok=True)
            path.symlink_to(shard)
        elif kind == "files":
            path.touch()
        else:
            path.mkdir()
    with pytest.raises(Refused, match=f"{FOLDER} holds more than 40 names") as caught:
        resolve(settings(server), host, LAYOUT, caches=(OLD,))
    assert f"mv {FOLDER} {FOLDER}.before" in caught.value.hint
    assert not host.exists(LAYOUT.hub)


def test_what_is_taken_and_from_where_is_said(server: Hub, host: Host, old: str) -> None:
    chosen = settings(server)
    (change,) = changes(resolve(chosen, host, LAYOUT, caches=(OLD,)), host, chosen, caches=(OLD,))
    assert str(FOLDER) in change.describe()
    assert change.to_json()["from"] == str(FOLDER)


@pytest.mark.parametrize("spoil", [_link, _pipe, _longer, Path.unlink])
def test_what_takes_a_file_s_place_after_the_look_at_it_is_not_taken(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    (tmp_path / "theirs").write_bytes(b"whole")
    assert Host.bring(tmp_path, "theirs", tmp_path / "ours", 5, lambda _: True)
    (tmp_path / "ours").unlink()
    spoil(tmp_path / "theirs")
    assert not Host.bring(tmp_path, "theirs", tmp_path / "ours", 5, lambda _: True)
    assert not (tmp_path / "ours").exists()
