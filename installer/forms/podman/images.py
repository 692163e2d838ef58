"""An engine as an image: which one is meant, that it is the one that is here, and what is in it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path

from installer.base.errors import CommandFailed, Exit, InstallError, Refused
from installer.base.host import Completed, Host
from installer.base.language import tr
from installer.base.layout import Layout
from installer.base.report import Report
from installer.families.known import family_named, family_of
from installer.runtime.vllm_text import one_line
from installer.spec.carrier import Carrier
from installer.spec.engine import Engine
from installer.spec.settings import Settings
from installer.spec.values import IMAGE
from installer.spec.vendors import image_of

PODMAN = Path("/usr/bin/podman")
STORAGE = Path("/var/lib/containers")
OURS = "localhost/vllm-install"  # the name under which an image is kept for as long as a service needs it
MARKER = ".complete"
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
ID = re.compile(r"[0-9a-f]{64}")
BROUGHT = "image.tar"  # out of a bundle, while it is loaded
LARGEST = 1 << 22  # bytes of an image's description in an archive
MOST_HEADERS = 1 << 20  # bytes of an archive that are no member's; an image has 127 layers at most
LONGEST_HEADER = 1024  # bytes of what is said of one member besides
BESIDES = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
ABOUT = Path(__file__).with_name("image_check.py")
ANSWERS_WITHIN = 300  # seconds
MOST_SAID = 1 << 20  # bytes
ASKED = "vllm-install-look-into-"  # the name of the container in which an image is asked, up to its ID
# As little as its own description of itself needs.
HARMLESS = (
    "--rm", "--pull=never", "--network=none", "--read-only", "--read-only-tmpfs=false", "--image-volume=ignore",
    "--no-healthcheck", "--cap-drop=all", "--security-opt=no-new-privileges", "--pids-limit=0",
    "--log-driver=none", f"--timeout={ANSWERS_WITHIN}", "--user=65534:65534", "--entrypoint=python3",
)  # fmt: skip


class ImageFailed(InstallError):
    """The image cannot be had, or is not what it should be."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint, Exit.ENGINE)


@dataclass(frozen=True)
class Image:
    id: str
    machine: str
    names: tuple[str, ...] = ()


def resolve(settings: Settings, kind: str, python: Path, host: Host) -> Engine:
    """The image that is meant, as it is now: whatever becomes of its name, the service keeps this one."""
    reference = meant(settings, kind)
    image = find(reference, host)
    if image is None and is_file(reference):
        raise Refused(*_unreadable(reference))
    if image is None:
        raise Refused(tr("the image {image} is not on this host", image=reference), f"sudo podman pull {reference}")
    if image.machine != os.uname().machine:
        raise Refused(
            tr("{image} is for {other}, and this host is {machine}", image=reference, other=image.machine,
               machine=os.uname().machine),
            tr("name one for this host: --image REF"),
        )  # fmt: skip
    return engine_of(f"sha256:{image.id}", settings, kind, python)


def _unreadable(path: str | Path) -> tuple[str, str]:
    hint = tr("make the file with: podman save --output FILE NAME")
    return tr("{path} holds no image that can be read", path=path), hint


def engine_of(image: str, settings: Settings, kind: str, python: Path) -> Engine:
    version = family_of(settings).version(settings)
    request = hashlib.sha256(json.dumps([meant(settings, kind), version]).encode()).hexdigest()
    made = image.partition(":")[2][:16]
    return Engine(made, kind, version, python, "", request, family=settings.engine_family, image=image)


def meant(settings: Settings, kind: str) -> str:
    return settings.image or image_of(kind, settings.vllm_version)


def is_file(reference: str) -> bool:
    return reference.startswith("/")


def find(reference: str, host: Host) -> Image | None:
    if is_file(reference):
        return _in_archive(host.at(Path(reference)))
    # The ID first, which podman reckons: what comes behind it an image says of itself.
    said = host.output("podman", "image", "inspect", "--format", "{{.Id}} {{.Architecture}}", reference)
    found, _, machine = said.strip().partition(" ")
    return _image(found, machine)


def _image(found: str, machine: str, names: tuple[str, ...] = ()) -> Image | None:
    return Image(found, MACHINES.get(machine, one_line(machine)), names) if ID.fullmatch(found) else None


def _in_archive(path: Path) -> Image | None:
    """What `podman save` wrote says which image it is, before it is loaded."""
    try:
        with _Sparing(path) as file, tarfile.open(fileobj=file, mode="r:", tarinfo=_Header) as archive:
            _check_means_one(archive.getmembers())
            (about,) = json.loads(_member(archive, "manifest.json", file))
            config = _member(archive, about["Config"], file)
            found, machine = hashlib.sha256(config).hexdigest(), str(json.loads(config)["architecture"])
            return _image(found, machine, tuple(map(_name, about.get("RepoTags") or ())))
    except (OSError, tarfile.TarError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


class _Sparing(io.FileIO):
    """An archive for tarfile, which keeps in memory whatever headers say: so much is read and no more."""

    def __init__(self, path: Path) -> None:
        # A pipe in the place of a file must not be waited for.
        super().__init__(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        self.left = MOST_HEADERS

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= self.left:
            raise ValueError("it says more than an image needs")
        self.left -= size
        return super().read(size) or b""


class _Header(tarfile.TarInfo):
    """One that podman writes says little besides, and of one member: tarfile keeps what is said of all for each."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        found = super().frombuf(buf, encoding, errors)
        if found.type == tarfile.XGLTYPE or (found.type in BESIDES and found.size > LONGEST_HEADER):
            raise ValueError("it says more than an image needs")
        return found


def _check_means_one(members: list[tarfile.TarInfo]) -> None:
    """Podman takes the first of two with one name, and an archive of OCI's before its own: it is to see what we do."""
    names = [os.path.normpath(f"/{member.name}") for member in members]
    if names.count("/manifest.json") != 1 or {"/index.json", "/oci-layout"} & {*names}:
        raise ValueError("it can be read in two ways")


def _name(given: object) -> str:
    """A name as podman takes it, and no option of its."""
    if not isinstance(given, str) or not IMAGE.fullmatch(given):
        raise ValueError(f"{given!r} is no name of an image")
    return given


def _member(archive: tarfile.TarFile, name: str, whole: _Sparing) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise KeyError(name)
    whole.left = LARGEST
    with file:
        return file.read(LARGEST)


# On the host


def is_complete(engine: Engine, host: Host, layout: Layout) -> bool:
    """Checked to the end, and still here under our name."""
    kept = find(_kept_as(engine.id), host) if host.exists(layout.engines / engine.id / MARKER) else None
    return kept is not None and f"sha256:{kept.id}" == engine.image


def let_go(path: Path, host: Host) -> None:
    """Take our name from the image of an engine that is removed; it goes where nobody has another for it."""
    if find(_kept_as(path.name), host):
        _podman(host, "rmi", _kept_as(path.name), check=False)


def _podman(host: Host, *words: str | Path, check: bool = True) -> Completed:
    return host.run(host.at(PODMAN), *words, check=check)


def _kept_as(engine_id: str) -> str:
    return f"{OURS}:{engine_id}"


@dataclass(frozen=True)
class BringImage:
    """Load the image where it lies in a file, see what is in it, and keep it under a name of ours."""

    engine: Engine
    reference: str
    layout: Layout
    bytes_needed: int = 0
    bundle: Carrier | None = None  # which has it

    def describe(self) -> str:
        file = self.bundle.path if self.bundle else self.reference
        is_loaded = self.bundle or is_file(self.reference)
        what = tr("load {image}", image=file) if is_loaded else tr("take {image}", image=self.reference)
        return tr("{what}: image {id}, and see what is in it", what=what, id=self.engine.image[7:19])

    def to_json(self) -> dict[str, object]:
        return {
            "kind": "image", "image": self.engine.image, "reference": self.reference, "bytes": self.bytes_needed,
            "vllm": self.engine.vllm_version, "engine": self.engine.kind,
            **({"bundle": str(self.bundle.path)} if self.bundle else {}),
        }  # fmt: skip

    def apply(self, host: Host, report: Report) -> None:
        engine = self.engine
        if is_complete(engine, host, self.layout):
            return  # another service's deploy was first
        before = self._brought(host, report)
        if find(engine.image, host) is None:
            raise ImageFailed(
                tr("{image} is another image now than {id}", image=self.reference, id=engine.image[7:19]),
                tr("run the command again"),
            )
        _podman(host, "tag", engine.image, _kept_as(engine.id))
        try:
            for name in before:  # brought by the file, and nobody else's
                _podman(host, "untag", engine.image, name, check=False)
            self._check(host)
        except BaseException:
            let_go(self.layout.engines / engine.id, host)
            raise
        about = asdict(engine) | {"python": str(engine.python)}
        host.write(self.layout.engines / engine.id / MARKER, json.dumps(about, indent=1, sort_keys=True) + "\n")

    def _brought(self, host: Host, report: Report) -> tuple[str, ...]:
        """The names that came with it. Out of a bundle it lies for a while where our mark of it will be."""
        if self.bundle is None:
            return self._load(Path(self.reference), host) if is_file(self.reference) else ()
        folder = self.layout.engines / self.engine.id
        host.make_dir(folder)
        self.bundle.bring_image(host.at(folder / BROUGHT), report)
        try:
            return self._load(folder / BROUGHT, host)
        finally:
            host.remove(folder)

    def _load(self, path: Path, host: Host) -> tuple[str, ...]:
        image = _in_archive(host.at(path))
        if image is None:
            raise ImageFailed(*_unreadable(self.bundle.path if self.bundle else path))
        if f"sha256:{image.id}" != self.engine.image:
            return ()  # not the one that is meant
        before = {name: find(name, host) for name in image.names}
        if taken := next((name for name, other in before.items() if other and other.id != image.id), None):
            raise ImageFailed(
                tr("loading {path} would take the name {name} from another image", path=path, name=taken),
                f"sudo podman untag {taken}",
            )
        try:
            _podman(host, "load", "--quiet", "--input", host.at(path))
        except CommandFailed as error:
            full = "no space left" in error.output.lower()
            raise ImageFailed(
                tr("podman could not load {path}:\n{said}", path=path, said=last_lines(error.output)),
                tr("free some space below {path} and run the command again", path=STORAGE) if full else
                tr("make the file anew with: podman save --output FILE NAME"),
            ) from None  # fmt: skip
        ours = _kept_as(self.engine.id)
        return tuple(name for name, other in before.items() if other is None and name != ours)

    def _check(self, host: Host) -> None:
        """By what its packages say of themselves; that it serves, the service's proof sees."""
        engine, family = self.engine, family_named(self.engine.family)
        said, is_whole = _asked(engine, family.name, host)
        if not is_whole:
            raise ImageFailed(
                tr("{image} did not say within {seconds} s and {bytes} bytes what is in it, and was ended:\n{said}",
                   image=self.reference, seconds=ANSWERS_WITHIN, bytes=MOST_SAID, said=last_lines(said)),
                tr("name an image of vLLM: --image {image}", image=image_of(engine.kind, engine.vllm_version)),
            )  # fmt: skip
        found = _found(said)
        if found is None:
            raise ImageFailed(
                tr("{image} has no {engine} that its python3 finds:\n{said}", image=self.reference,
                   engine=family.title, said=last_lines(said)),
                tr("name an image of vLLM: --image {image}", image=image_of(engine.kind, engine.vllm_version)),
            )  # fmt: skip
        version, kind = found
        if version != engine.vllm_version:
            raise ImageFailed(
                tr("{image} holds {engine} {version}, and {wanted} was asked for", image=self.reference,
                   engine=family.title, version=version, wanted=engine.vllm_version),
                tr("ask for what it holds (--vllm-version {version}), or name another image", version=version),
            )  # fmt: skip
        if kind != engine.kind:
            raise ImageFailed(
                tr("the image {image} is a build for {found}, and this service needs one for {kind}",
                   image=self.reference, found=kind, kind=engine.kind),
                tr("name another image, or choose with --engine"),
            )  # fmt: skip


def _asked(engine: Engine, package: str, host: Host) -> tuple[str, bool]:
    """What the image prints, and whether that was all: it may be anybody's, and print without an end."""
    name = f"{ASKED}{engine.id}"
    words = (*HARMLESS, f"--name={name}", "--replace", engine.image, "-I", "-c", ABOUT.read_text(), package)
    try:
        return host.ask(host.at(PODMAN), "run", *words, within=ANSWERS_WITHIN, longest=MOST_SAID, errors=True)
    finally:
        _podman(host, "rm", "--force", "--time=0", "--ignore", name, check=False)


def _found(text: str) -> tuple[str, str] | None:
    """The version and the kind of build, from the last line that the image printed."""
    try:
        found = json.loads(text.strip().splitlines()[-1])
        return one_line(str(found["version"])).partition("+")[0], one_line(str(found["kind"]))
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None


def last_lines(text: str) -> str:
    return "\n".join(one_line(line) for line in text.strip().splitlines()[-6:])


def bring(engine: Engine, settings: Settings, layout: Layout, host: Host, bundle: Carrier | None = None) -> BringImage:
    """What is loaded lies on the disk twice for a while, and out of a bundle once more."""
    reference = meant(settings, engine.kind)
    file = host.at(Path(reference)).stat().st_size if is_file(reference) else 0
    return BringImage(engine, reference, layout, 3 * bundle.image_bytes if bundle else 2 * file, bundle)


# To take along


def size(reference: str, host: Host) -> int:
    """Of a saved image, at most; nothing where podman does not say."""
    if is_file(reference):
        return host.at(Path(reference)).stat().st_size
    said = host.output("podman", "image", "inspect", "--format", "{{.Size}}", reference).strip()
    return int(said) if said.isdecimal() else 0


def save(engine: Engine, reference: str, target: Path, host: Host) -> Path:
    """The file that it is in: its own, or one that podman writes, which does not write over another."""
    if is_file(reference):
        return host.at(Path(reference))
    try:
        _podman(host, "save", "--quiet", "--output", target, engine.image)
    except CommandFailed as error:
        raise ImageFailed(
            tr("podman could not save {image}:\n{said}", image=reference, said=last_lines(error.output))
        ) from None
    return target
