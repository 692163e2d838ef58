"""Images as engines: which one is meant, what keeps one from being taken, and what becomes of it."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from installer.base.errors import Exit, Refused
from installer.base.host import Host
from installer.base.layout import Layout
from installer.base.report import Lines, Report
from installer.forms.podman import images
from installer.forms.podman.images import BringImage, ImageFailed
from installer.forms.podman.words import run_words, weights_of
from installer.spec.carrier import Carrier
from installer.spec.engine import Engine
from installer.spec.settings import Settings
from installer.spec.target import Adapter, Placed
from tests.kit.targets import target

LAYOUT = Layout("qwen3vl")
PYTHON = Path("/usr/bin/python3")
NAME = "localhost/vllm:1"
SETTINGS = Settings(runtime="podman", image=NAME)
HERE = next(name for name, machine in images.MACHINES.items() if machine == os.uname().machine)
# Names are links to images; an image is a file with what it says of its machine and of its engine.
PODMAN = """#!/bin/sh
cd "$(dirname "$0")/../../store" && echo "$@" >>said
ref() { printf %s "$1" | sed s,/,_,g; }
for last; do :; done
case "$1 $2" in
"image inspect") file=$(readlink -f "$(ref "${last#sha256:}")") && [ -e "$file" ] || exit 1
    echo "$(basename "$file") $(sed -n 1p "$file")" ;;
"tag "*) ln -sf "${2#sha256:}" "$(ref "$3")" ;;
"untag "*) rm -f "$(ref "$3")" ;;
"rmi "*) rm -f "$(ref "$2")" ;;
"run "*) [ ! -e flood ] || exec head -c 16777216 /dev/zero
    sed -n 2p "$(ls | grep -E '^[0-9a-f]{64}$')" ;;
"load "*) [ ! -e full ] || { echo "write: no space left on device" >&2; exit 125; }
    [ ! -e loads ] || cp "$(cat loads)" . ;;
esac
"""


class Store:
    """A host with podman's images."""

    def __init__(self, root: Path) -> None:
        self.host, self.root = Host(root), root / "store"
        self.root.mkdir()
        self.host.write(images.PODMAN, PODMAN, 0o755)

    def add(self, image: str = "a" * 64, machine: str = HERE, version: str = "0.32.0+cpu", kind: str = "cpu") -> str:
        about = json.dumps({"version": version, "kind": kind})
        (self.root / image).write_text(f"{machine}\n{about}\n")
        return image

    def name(self, image: str, name: str = NAME) -> None:
        (self.root / name.replace("/", "_")).symlink_to(image)

    @property
    def names(self) -> set[str]:
        return {path.name for path in self.root.iterdir() if path.is_symlink()}

    def archive(
        self, machine: str = HERE, called: str = "", names: object = (NAME,), more: Sequence[tuple[str, bytes]] = ()
    ) -> tuple[Path, str]:
        """A file as `podman save` writes it, and the image in it."""
        config = json.dumps({"architecture": machine}).encode()
        image = hashlib.sha256(config).hexdigest()
        called = called or image
        manifest = json.dumps([{"Config": f"{called}.json", "RepoTags": names, "Layers": []}]).encode()
        with tarfile.open(self.host.at(Path("/vllm.tar")), "w") as file:
            for name, content in (*more, (f"{called}.json", config), ("manifest.json", manifest)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
        return Path("/vllm.tar"), image

    def resolved(self, settings: Settings = SETTINGS) -> Engine:
        return images.resolve(settings, "cpu", PYTHON, self.host)

    def bring(self, settings: Settings = SETTINGS) -> Engine:
        engine = self.resolved(settings)
        images.bring(engine, settings, LAYOUT, self.host).apply(self.host, Lines())
        return engine


@pytest.fixture
def store(host: Host) -> Store:
    return Store(host.root)


def test_the_image_is_kept_by_its_id_whatever_becomes_of_its_name(store: Store) -> None:
    store.name(store.add())
    engine = store.bring()
    assert engine.image == f"sha256:{'a' * 64}"
    assert images.is_complete(engine, store.host, LAYOUT)
    (store.root / NAME.replace("/", "_")).unlink()
    store.name(store.add("b" * 64))
    assert images.is_complete(engine, store.host, LAYOUT)
    assert store.resolved().image != engine.image, "the name means another one now, which is a change"


def test_one_that_is_gone_or_was_replaced_under_our_name_is_not_complete(store: Store) -> None:
    store.name(store.add())
    engine = store.bring()
    kept = store.root / f"localhost_vllm-install:{engine.id}"
    kept.unlink()
    assert not images.is_complete(engine, store.host, LAYOUT)
    kept.symlink_to(store.add("b" * 64))
    assert not images.is_complete(engine, store.host, LAYOUT)


def test_what_is_not_here_is_refused_with_the_command_that_gets_it(store: Store) -> None:
    with pytest.raises(Refused) as caught:
        store.resolved()
    assert caught.value.hint == f"sudo podman pull {NAME}"
    default = dataclasses.replace(SETTINGS, image=None)
    with pytest.raises(Refused) as caught:
        images.resolve(default, "cuda", PYTHON, store.host)
    assert caught.value.hint == "sudo podman pull docker.io/vllm/vllm-openai:v0.32.0"


def test_another_architecture_is_refused_before_anything_is_loaded(store: Store) -> None:
    other = next(name for name in images.MACHINES if name != HERE)
    store.name(store.add(machine=other))
    with pytest.raises(Refused, match="and this host is"):
        store.resolved()
    path, _ = store.archive(machine="riscv64")
    with pytest.raises(Refused, match="is for riscv64"):
        store.resolved(dataclasses.replace(SETTINGS, image=str(path)))


@pytest.mark.parametrize(
    ("names", "more"),
    [
        (["--root=/srv/evil"], []), (["/dev/tty"], []), ([7], []), ([f"{NAME}\n"], []),
        ([], [("manifest.json", b"[]")]), ([], [("./manifest.json", b"[]")]), ([], [("x/../manifest.json", b"[]")]),
        ([], [("index.json", b"{}")]), ([], [("./oci-layout", b"{}")]),
    ],
)  # fmt: skip
def test_a_file_that_podman_would_take_otherwise_is_no_image(
    names: object, more: list[tuple[str, bytes]], store: Store
) -> None:
    path, _ = store.archive(names=names, more=more)
    with pytest.raises(Refused, match="holds no image that can be read"):
        store.resolved(dataclasses.replace(SETTINGS, image=str(path)))
    assert not (store.root / "said").exists(), "podman was asked about what the file says"


def test_an_archive_without_an_end_is_no_image(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = store.archive(more=[(f"{number}", b"") for number in range(9)])
    settings = dataclasses.replace(SETTINGS, image=str(path))
    assert store.resolved(settings)
    monkeypatch.setattr(images, "MOST_HEADERS", 5000)
    with pytest.raises(Refused, match="holds no image that can be read"):
        store.resolved(settings)


@pytest.mark.parametrize(
    "besides",
    [
        {"pax_headers": {"comment": "x" * 2000}},
        {"pax_headers": {"comment": "x" * 10_000_000}},
        {"name": "x" * 2000},
        {"linkname": "x" * 2000},
        {"size": 1 << 40, "type": tarfile.XHDTYPE},
    ],
)
def test_a_member_of_which_much_is_said_besides_is_in_no_image(store: Store, besides: dict[str, Any]) -> None:
    path, _ = store.archive()
    assert store.resolved(dataclasses.replace(SETTINGS, image=str(path)))
    member = tarfile.TarInfo("x")
    for name, value in besides.items():
        setattr(member, name, value)
    form = tarfile.PAX_FORMAT if "pax_headers" in besides else tarfile.GNU_FORMAT
    whole = store.host.at(path)
    whole.write_bytes(member.tobuf(form) + whole.read_bytes())
    with pytest.raises(Refused, match="holds no image that can be read"):
        store.resolved(dataclasses.replace(SETTINGS, image=str(path)))


def test_what_is_said_of_all_members_is_in_no_image(store: Store) -> None:
    """The few bytes would be kept once more for every member."""
    path, _ = store.archive()
    whole = store.host.at(path)
    whole.write_bytes(tarfile.TarInfo.create_pax_global_header({"comment": "x"}) + whole.read_bytes())
    with pytest.raises(Refused, match="holds no image that can be read"):
        store.resolved(dataclasses.replace(SETTINGS, image=str(path)))


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(store: Store) -> None:
    os.mkfifo(store.host.at(Path("/vllm.tar")))
    with pytest.raises(Refused, match="holds no image that can be read"):
        store.resolved(dataclasses.replace(SETTINGS, image="/vllm.tar"))


def test_a_description_without_an_end_is_no_image(store: Store) -> None:
    with tarfile.open(store.host.at(Path("/vllm.tar")), "w") as file:
        member = tarfile.TarInfo("manifest.json")
        member.size = images.LARGEST
        file.addfile(member, io.BytesIO(b"[" * images.LARGEST))
    with pytest.raises(Refused, match="holds no image that can be read"):
        store.resolved(dataclasses.replace(SETTINGS, image="/vllm.tar"))


def test_a_file_takes_no_name_from_another_image(store: Store) -> None:
    path, _ = store.archive(names=["docker.io/library/other:1", NAME])
    store.name(store.add(), NAME)
    with pytest.raises(ImageFailed, match=f"would take the name {NAME} from another image") as caught:
        store.bring(dataclasses.replace(SETTINGS, image=str(path)))
    assert caught.value.hint == f"sudo podman untag {NAME}"
    assert "load" not in (store.root / "said").read_text()


def test_a_file_of_what_was_kept_elsewhere_has_the_name_that_keeps_it_here(store: Store) -> None:
    _, image = store.archive()
    kept = f"{images.OURS}:{image[:16]}"
    path, _ = store.archive(names=[kept])
    (store.host.root / image).write_text(f'{HERE}\n{{"version": "0.32.0", "kind": "cpu"}}\n')
    (store.root / "loads").write_text(str(store.host.root / image))
    engine = store.bring(dataclasses.replace(SETTINGS, image=str(path)))
    assert images.is_complete(engine, store.host, LAYOUT)


def test_what_an_image_says_of_its_machine_makes_it_no_other(store: Store) -> None:
    store.name(store.add(machine=f'{HERE}", "id": "{"b" * 64}'))
    found = images.find(NAME, store.host)
    assert found is not None
    assert found.id == "a" * 64


def test_a_file_says_which_image_it_holds_before_it_is_loaded_and_brings_no_name(store: Store) -> None:
    path, image = store.archive()
    settings = dataclasses.replace(SETTINGS, image=str(path))
    assert store.resolved(settings).image == f"sha256:{image}"
    loaded = store.host.root / image
    loaded.write_text(f'{HERE}\n{{"version": "0.32.0", "kind": "cpu"}}\n')
    (store.root / "loads").write_text(str(loaded))
    engine = store.bring(settings)
    assert store.names == {f"localhost_vllm-install:{engine.id}"}
    assert "untag" in (store.root / "said").read_text()


def test_a_file_is_not_believed_which_image_it_holds(store: Store) -> None:
    path, image = store.archive(called="b" * 64)
    assert store.resolved(dataclasses.replace(SETTINGS, image=str(path))).image == f"sha256:{image}"


@pytest.mark.parametrize("text", [b"", b"no archive", bytes(10240)])
def test_a_file_that_holds_no_image_is_refused(store: Store, text: bytes) -> None:
    store.host.at(Path("/vllm.tar")).write_bytes(text)
    with pytest.raises(Refused, match="holds no image"):
        store.resolved(dataclasses.replace(SETTINGS, image="/vllm.tar"))


def test_a_file_from_which_another_image_comes_is_not_taken(store: Store) -> None:
    path, _ = store.archive()
    with pytest.raises(ImageFailed, match="is another image now") as caught:
        store.bring(dataclasses.replace(SETTINGS, image=str(path)))
    assert caught.value.exit_code == Exit.ENGINE
    assert store.names == set()


class Carried(Carrier):
    """A bundle, as far as an image asks of one."""

    path = Path("/x.bundle")
    image_bytes = 10240

    def __init__(self, store: Store) -> None:
        self.file, self.image = store.archive()
        self.host = store.host

    def bring_image(self, target: Path, report: Report) -> None:
        assert target.parent.is_dir()
        shutil.copy(self.host.at(self.file), target)


def carried(store: Store, image: str) -> tuple[Engine, BringImage]:
    settings = dataclasses.replace(SETTINGS, image=f"sha256:{image}")
    engine = images.engine_of(settings.image or "", settings, "cpu", PYTHON)
    return engine, images.bring(engine, settings, LAYOUT, store.host, Carried(store))


def test_an_image_comes_out_of_a_bundle_and_later_commands_mean_the_same(store: Store) -> None:
    image = Carried(store).image
    loaded = store.host.root / image
    loaded.write_text(f'{HERE}\n{{"version": "0.32.0", "kind": "cpu"}}\n')
    (store.root / "loads").write_text(str(loaded))
    engine, change = carried(store, image)
    assert change.to_json()["bundle"] == "/x.bundle"
    change.apply(store.host, Lines())
    assert images.is_complete(engine, store.host, LAYOUT)
    assert store.names == {f"localhost_vllm-install:{engine.id}"}
    assert [path.name for path in store.host.children(LAYOUT.engines / engine.id)] == [images.MARKER]
    assert store.resolved(dataclasses.replace(SETTINGS, image=f"sha256:{image}")) == engine


def test_a_bundle_with_an_image_that_cannot_be_read_says_so(store: Store) -> None:
    engine, change = carried(store, "b" * 64)
    store.host.at(Path("/vllm.tar")).write_bytes(tarfile.TarInfo.create_pax_global_header({"comment": "x"}))
    with pytest.raises(ImageFailed, match=r"/x\.bundle holds no image that can be read") as caught:
        change.apply(store.host, Lines())
    assert caught.value.exit_code == Exit.ENGINE
    assert not store.host.exists(LAYOUT.engines / engine.id)


def test_a_bundle_with_another_image_than_it_says_is_not_loaded(store: Store) -> None:
    engine, change = carried(store, "b" * 64)
    with pytest.raises(ImageFailed, match="is another image now"):
        change.apply(store.host, Lines())
    assert "load" not in (store.root / "said").read_text().split()
    assert not store.host.exists(LAYOUT.engines / engine.id)


def test_what_is_taken_along_is_the_file_itself_or_one_that_podman_writes(store: Store, tmp_path: Path) -> None:
    path, _ = store.archive()
    settings = dataclasses.replace(SETTINGS, image=str(path))
    assert images.save(store.resolved(settings), str(path), tmp_path / "x", store.host) == store.host.at(path)
    assert images.size(str(path), store.host) == store.host.at(path).stat().st_size
    store.name(store.add())
    assert images.save(store.resolved(), NAME, tmp_path / "x", store.host) == tmp_path / "x"
    assert f"save --quiet --output {tmp_path}/x sha256:{'a' * 64}" in (store.root / "said").read_text()


def test_a_full_disk_is_said(store: Store) -> None:
    path, _ = store.archive()
    (store.root / "full").touch()
    with pytest.raises(ImageFailed, match="no space left") as caught:
        store.bring(dataclasses.replace(SETTINGS, image=str(path)))
    assert "free some space below /var/lib/containers" in caught.value.hint


@pytest.mark.parametrize(
    ("inside", "said"),
    [
        ({"version": "0.31.0"}, "holds vLLM 0.31.0, and 0.32.0 was asked for"),
        ({"kind": "cuda"}, "is a build for cuda"),
        ({"version": ""}, "holds vLLM , and"),
    ],
)
def test_another_engine_inside_is_not_taken_and_leaves_no_name(store: Store, inside: dict[str, str], said: str) -> None:
    store.name(store.add(**inside))
    with pytest.raises(ImageFailed, match=said):
        store.bring()
    assert store.names == {NAME.replace("/", "_")}


def test_no_engine_inside_is_said_with_what_it_printed(store: Store) -> None:
    store.name(store.add())
    (store.root / ("a" * 64)).write_text(f"{HERE}\nNo module \x1b[31mnamed\n")
    with pytest.raises(ImageFailed, match="no vLLM that its python3 finds") as caught:
        store.bring()
    assert "\x1b" not in caught.value.message


def test_an_image_that_prints_without_an_end_is_ended_and_leaves_nothing(store: Store) -> None:
    store.name(store.add())
    (store.root / "flood").touch()
    with pytest.raises(ImageFailed, match="did not say within 300 s and 1048576 bytes what is in it") as caught:
        store.bring()
    assert len(caught.value.message) < 1000
    name = f"{images.ASKED}{store.resolved().id}"
    assert f"rm --force --time=0 --ignore {name}" in (store.root / "said").read_text().splitlines()
    assert store.names == {NAME.replace("/", "_")}


def test_who_needs_it_no_more_takes_only_the_own_name(store: Store) -> None:
    store.name(store.add())
    engine = store.bring()
    images.let_go(LAYOUT.engines / engine.id, store.host)
    assert store.names == {NAME.replace("/", "_")}
    images.let_go(LAYOUT.engines / "of-another-form", store.host)


def test_weights_in_the_cache_come_with_what_their_links_lead_to() -> None:
    of_hub = target(SETTINGS)
    assert weights_of(of_hub.model, LAYOUT) == of_hub.model.path.parents[1]
    own = target(SETTINGS, path=Path("/srv/model"))
    assert weights_of(own.model, LAYOUT) == Path("/srv/model")


def test_adapters_are_bound_in_as_the_model_is() -> None:
    made = target(SETTINGS)
    beside = Adapter(dataclasses.replace(made.model, id="sql", path=Path("/srv/sql")), 16)
    words = run_words(dataclasses.replace(made, adapters=(beside,)), LAYOUT, "qwen3vl", Path("/r")).split()
    assert "--volume=/srv/sql:/srv/sql:ro" in words


def test_no_container_of_anybody_elses_has_the_name_of_ours() -> None:
    """One of that name is taken away before each start."""
    words = run_words(target(SETTINGS), LAYOUT, "qwen3vl", Path("/r")).split()
    assert "--replace" in words
    assert "--name=vllm-install-qwen3vl" in words


def test_gpus_are_given_by_name_and_no_others() -> None:
    made = dataclasses.replace(target(SETTINGS), gpus=(Placed("GPU-1", "NVIDIA H200"), Placed("GPU-2", "NVIDIA H200")))
    words = run_words(made, LAYOUT, "qwen3vl", Path("/r")).split()
    assert [word for word in words if word.startswith("--device")] == [
        "--device=nvidia.com/gpu=GPU-1", "--device=nvidia.com/gpu=GPU-2",
    ]  # fmt: skip
    assert "--device=nvidia.com/gpu=all" in run_words(target(SETTINGS), LAYOUT, "qwen3vl", Path("/r")).split()
    assert "--device" not in run_words(target(SETTINGS, kind="cpu"), LAYOUT, "qwen3vl", Path("/r"))
