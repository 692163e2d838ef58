"""How a bundle is laid out: a manifest that says everything, and a tar archive that follows from it byte by byte.

Whoever knows the manifest knows every header and every offset, so nothing that an archive says about itself is
believed: it is what the manifest implies, or it is damaged. Any tar unpacks it all the same.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath

from installer.base.errors import Exit, InstallError
from installer.base.language import tr
from installer.families.known import FAMILIES
from installer.spec.model import COMMIT, DIGEST, ModelFile, is_inside
from installer.spec.settings import Settings
from installer.spec.values import ADAPTER, BUILTIN, HUB_ID
from installer.spec.vendors import KINDS

FORMAT = 1
MANIFEST, SIGNATURE, INSTALL = "manifest.json", "manifest.json.sig", "install.sh"
WHEELS, TOOL, MODEL, ADAPTERS = "wheels/", "tool/", "model/", "adapters/"
IMAGE = "image.tar"  # as podman saves it
BLOCK = 512
# Every member's data begins on a page of the file system, so that a file system that can share blocks does.
PAGE = 4096
END = 2 * BLOCK
LONGEST_MANIFEST = 64 << 20
LONGEST_SIGNATURE = 64 << 10
LONGEST_NAME = 400  # with it, a member's records fit into one block
LARGEST = 1 << 50
OCTAL_LIMIT = 8**11
MOMENT = 946684800  # the same for every member: the same contents give the same bytes
PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!+_-]+( --hash=sha256:[0-9a-f]{64})*")
IMAGE_ID = re.compile(r"sha256:[0-9a-f]{64}")
WHEEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.!+-]*\.whl")


class BundleError(InstallError):
    """A bundle that cannot be right."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(
            message, hint or tr("copy it here again, or make it anew: vllm-install bundle create"), Exit.MODEL
        )


@dataclass(frozen=True)
class Member:
    name: str
    size: int
    sha256: str

    @property
    def mode(self) -> int:
        return 0o755 if self.name == INSTALL else 0o644


@dataclass(frozen=True)
class EnginePart:
    """An engine as a lock, and the host that its wheels are for; or as an image, for any of its architecture."""

    kind: str
    vllm_version: str
    lock: str
    python: str  # 3.12
    arch: str
    glibc: tuple[int, int]
    image: str = ""
    family: str = Settings.engine_family


@dataclass(frozen=True)
class ModelPart:
    """A model by its name in the settings; the built-in one has no files."""

    name: str
    revision: str | None
    commit: str | None
    files: tuple[ModelFile, ...]

    def to_json(self) -> dict[str, object]:
        return {**asdict(self), "files": [{"name": file.name, "digest": file.digest} for file in self.files]}


@dataclass(frozen=True)
class AdapterPart:
    """A LoRA adapter by the name that clients ask for."""

    name: str
    model: ModelPart

    @property
    def setting(self) -> str:
        """As one of LORA."""
        return f"{self.name}={self.model.name}" + (f"@{self.model.revision}" if self.model.revision else "")


@dataclass(frozen=True)
class Manifest:
    tool: str
    signed: bool
    engine: EnginePart
    model: ModelPart
    members: tuple[Member, ...]
    adapters: tuple[AdapterPart, ...] = ()

    @property
    def parts(self) -> dict[str, ModelPart]:
        """All that is read by an engine, by the folder that holds its files."""
        return dict(zip(folders(), (self.model, *(each.model for each in self.adapters)), strict=False))

    def below(self, folder: str) -> tuple[Member, ...]:
        return tuple(member for member in self.members if member.name.startswith(folder))

    def to_text(self) -> str:
        usual = {"image": "", "family": Settings.engine_family}  # as in bundles from before there were others
        engine = {name: value for name, value in asdict(self.engine).items() if value != usual.get(name)}
        adapters = [{"name": each.name, "model": each.model.to_json()} for each in self.adapters]
        data = {
            "format": FORMAT,
            "tool": self.tool,
            "signed": self.signed,
            "engine": engine,
            "model": self.model.to_json(),
            **({"adapters": adapters} if adapters else {}),
            "members": [asdict(member) for member in self.members],
        }
        return json.dumps(data, indent=1) + "\n"


def folders() -> Iterator[str]:
    """Of the model, and of each adapter after it."""
    return itertools.chain((MODEL,), (f"{ADAPTERS}{number}/" for number in itertools.count()))


# Reading a manifest: nothing in it is used before all of it was checked


def parse_manifest(text: bytes, where: object) -> Manifest:
    try:
        data = json.loads(text)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            found = data.get("format") if isinstance(data, dict) else None
            raise BundleError(
                tr(
                    "{where} has the format {found!r}, of which this vllm-install knows nothing",
                    where=where,
                    found=found,
                ),
                tr("install the vllm-install that made it; the bundle holds it (docs/air-gap.md)"),
            )
        members = tuple(_member(entry) for entry in _list(data["members"]))
        manifest = Manifest(
            _text(data["tool"]), _bool(data["signed"]), _engine(data["engine"]),
            _model(data["model"], members, MODEL), members, _adapters(data.get("adapters", []), members),
        )  # fmt: skip
        _check_members(manifest)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(
            tr(
                "{where} has a manifest that is damaged: {kind}: {error}",
                where=where,
                kind=type(error).__name__,
                error=error,
            )
        ) from None
    return manifest


def _member(entry: object) -> Member:
    data = _dict(entry)
    name, size, digest = _text(data["name"]), data["size"], _text(data["sha256"])
    folder, _, rest = name.rpartition("/")
    is_wheel = folder + "/" in (WHEELS, TOOL) and WHEEL_NAME.fullmatch(rest)
    is_weight = name.startswith((MODEL, ADAPTERS)) and is_inside(name)
    if name not in (INSTALL, IMAGE) and not is_wheel and not is_weight:
        raise ValueError(tr("{name!r} has no place in a bundle", name=name))
    if len(name.encode()) > LONGEST_NAME:
        raise ValueError(tr("the name {name!r}… is too long", name=name[:80]))
    if type(size) is not int or not 0 <= size <= LARGEST:
        raise ValueError(tr("{name} cannot have the size {size!r}", name=name, size=size))
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ValueError(tr("{name} has no usable checksum", name=name))
    return Member(name, size, digest)


def _engine(value: object) -> EnginePart:
    data = _dict(value)
    kind, lock, python = _text(data["kind"]), data["lock"], _text(data["python"])
    major, minor = _list(data["glibc"])
    if kind not in KINDS or not re.fullmatch(r"3\.\d{1,2}", python):
        raise ValueError(tr("there is no engine {kind!r} for Python {python!r}", kind=kind, python=python))
    if type(major) is not int or type(minor) is not int:
        raise TypeError(tr("glibc has no version"))
    if not isinstance(lock, str):
        raise TypeError(tr("{value!r} is no text", value=str(lock)[:80]))
    # A lock is read by a package installer, to which a line can mean much more than a version.
    if stranger := next((line for line in lock.splitlines() if not PACKAGE.fullmatch(line)), None):
        raise ValueError(tr("the lock holds {line!r}", line=stranger[:80]))
    image = _text(data.get("image", ""))
    if image and (lock or not IMAGE_ID.fullmatch(image)):
        raise ValueError(tr("{image!r} is no image, or not all of the engine", image=image[:80]))
    family = _text(data.get("family", Settings.engine_family))
    if family not in FAMILIES:
        raise ValueError(tr("{family!r} is no engine that is known", family=family[:80]))
    version, arch = _text(data["vllm_version"]), _text(data["arch"])
    return EnginePart(kind, version, lock, python, arch, (major, minor), image, family)


def _adapters(value: object, members: tuple[Member, ...]) -> tuple[AdapterPart, ...]:
    found = []
    for entry, folder in zip(map(_dict, _list(value)), itertools.islice(folders(), 1, None), strict=False):
        name, model = _text(entry["name"]), _model(entry["model"], members, folder)
        if not ADAPTER.fullmatch(name) or not model.files:
            raise ValueError(tr("{name!r} is no adapter", name=name[:80]))
        found.append(AdapterPart(name, model))
    return tuple(found)


def _model(value: object, members: tuple[Member, ...], folder: str) -> ModelPart:
    data = _dict(value)
    name, revision, commit = _text(data["name"]), data["revision"], data["commit"]
    carried = {member.name: member for member in members}
    files = []
    for entry in map(_dict, _list(data["files"])):
        file, digest = _text(entry["name"]), _text(entry["digest"])
        member = carried[folder + file]
        # The digest names the file in a cache that all services share: it must be true.
        if not DIGEST.fullmatch(digest) or (len(digest) == 64 and digest != member.sha256):
            raise ValueError(tr("{file} has a digest that is not its own", file=file))
        files.append(ModelFile(file, member.size, digest))
    if name == BUILTIN:
        return ModelPart(name, None, None, ())
    if not HUB_ID.fullmatch(name) or not isinstance(commit, str) or not COMMIT.fullmatch(commit) or not files:
        raise ValueError(tr("{name!r} is no model with a commit and files", name=name))
    return ModelPart(name, None if revision is None else _text(revision), commit, tuple(files))


def _check_members(manifest: Manifest) -> None:
    names = [member.name for member in manifest.members]
    known = set(names)
    if len(known) != len(names):
        raise ValueError(tr("{name} is there twice", name=next(name for name in names if names.count(name) > 1)))
    for name in names:
        if clash := next((str(parent) for parent in PurePosixPath(name).parents if str(parent) in known), None):
            raise ValueError(tr("{clash} is a file and a directory", clash=clash))
    files = {folder + file.name for folder, part in manifest.parts.items() for file in part.files}
    if files != {member.name for folder in (MODEL, ADAPTERS) for member in manifest.below(folder)}:
        raise ValueError(tr("its files and those of the model are not the same"))
    if (IMAGE in known) != bool(manifest.engine.image):
        raise ValueError(tr("its engine and {name} do not go together", name=IMAGE))


def _dict(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise TypeError(tr("{value!r} is no object", value=str(value)[:80]))
    return value


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError(tr("{value!r} is no list", value=str(value)[:80]))
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise TypeError(tr("{value!r} is no text", value=str(value)[:80]))
    return value


def _bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(tr("{value!r} is neither true nor false", value=str(value)[:80]))
    return value


# The archive


def places(members: tuple[Member, ...], start: int) -> Iterator[tuple[Member, int, bytes]]:
    """Each member with the offset of its header, and the header itself."""
    offset = start
    for member in members:
        head = header(member.name, member.size, offset, member.mode)
        yield member, offset, head
        offset = after(offset + len(head), member.size)


def after(data: int, size: int) -> int:
    """Where the next header begins."""
    return data + size + -size % BLOCK


def header_length(offset: int) -> int:
    """Up to the next page that leaves room for a record and the header itself."""
    return (-(offset + 3 * BLOCK) % PAGE) + 3 * BLOCK


def header(name: str, size: int, offset: int, mode: int = 0o644) -> bytes:
    """A pax record and a ustar header, with a comment as long as it takes for the data to begin on a page."""
    records = [_record("path", name)] if len(name.encode()) > 100 or not name.isascii() else []
    records += [_record("size", str(size))] if size >= OCTAL_LIMIT else []
    length = header_length(offset) - 2 * BLOCK
    rest = length - sum(map(len, records))
    comment = f"{rest} comment="
    filled = b"".join(records) + (comment + "-" * (rest - len(comment) - 1) + "\n").encode()
    return (
        _ustar("././@PaxHeader", length, 0o644, b"x")
        + filled
        + _ustar(name, size if size < OCTAL_LIMIT else 0, mode, b"0")
    )


def declared_size(head: bytes) -> int:
    """What a header says about its member's size; only for those whose size no manifest tells."""
    field = head[-BLOCK:][124:135]
    return int(field, 8) if re.fullmatch(rb"[0-7]{11}", field) else -1


def _record(key: str, value: str) -> bytes:
    body = f" {key}={value}\n".encode()
    length = len(body) + len(str(len(body)))
    length = len(body) + len(str(length))
    return str(length).encode() + body


def _ustar(name: str, size: int, mode: int, kind: bytes) -> bytes:
    before = b"".join((
        name.encode()[:100].ljust(100, b"\0"), b"%07o\0" % mode, b"%07o\0" % 0, b"%07o\0" % 0,
        b"%011o\0" % size, b"%011o\0" % MOMENT,
    ))  # fmt: skip
    behind = b"".join((
        kind, bytes(100), b"ustar\x0000", b"root".ljust(32, b"\0"), b"root".ljust(32, b"\0"), b"%07o\0" % 0,
        b"%07o\0" % 0, bytes(155), bytes(12),
    ))  # fmt: skip
    checksum = sum(before) + 8 * ord(" ") + sum(behind)
    return before + b"%06o\0 " % checksum + behind
