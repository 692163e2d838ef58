"""Known flaws of what an engine is made of: those that ship with this tool, or a newer list that somebody signed."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from installer.base.assets import DATA
from installer.base.datafile import DataError, Section
from installer.base.errors import Exit, InstallError, UsageError
from installer.base.host import Host
from installer.base.language import mark, tr
from installer.base.layout import ADVISORIES
from installer.base.signature import signer_of
from installer.spec.values import version_key

NAMESPACE = "vllm-install-advisories"  # so that a signature for something else is none for a list
LONGEST = 4 << 20  # bytes of a list
SEVERITIES = (mark("critical"), mark("high"), mark("medium"), mark("low"))
PACKAGES = ("vllm", "sglang", "torch")
ID = re.compile(r"GHSA(-[2-9cfghjmpqrvwx]{4}){3}|CVE-\d{4}-\d{4,7}|PYSEC-\d{4}-\d{1,6}", re.ASCII)
VERSION = re.compile(r"\d{1,4}(\.\d{1,4}){1,3}((rc|\.?post)\d{1,3})?", re.ASCII)
SOURCE = re.compile(r"https://[\w./-]{4,200}", re.ASCII)
DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


@dataclass(frozen=True)
class Advisory:
    id: str
    also: tuple[str, ...]  # other names of the same
    package: str
    introduced: str  # "" where every version before `fixed` is affected, as far as is known
    fixed: str
    severity: str  # "" where its maker names none
    summary: str
    source: str

    def affects(self, version: str) -> bool:
        since = not self.introduced or version_key(version) >= version_key(self.introduced)
        return since and version_key(version) < version_key(self.fixed)


@dataclass(frozen=True)
class Feed:
    issued: str  # the day
    advisories: tuple[Advisory, ...]


def load(host: Host) -> Feed:
    """The newer one of what ships and what was brought."""
    shipped = _parse((DATA / "advisories.json").read_text(), "advisories.json")
    brought = host.read_of(ADVISORIES, (0, os.geteuid()), LONGEST)
    return max(shipped, _parse(brought, str(ADVISORIES)), key=lambda feed: feed.issued) if brought else shipped


def update(path: Path, signers: Path, host: Host) -> tuple[Feed, str]:
    """Put a newer list in force, and say who signed it; one that nobody signed, or an older one, changes nothing."""
    signature = path.with_name(f"{path.name}.sig")
    text, seal = _read(path), _read(signature)
    signer = signer_of(text, seal, signers, NAMESPACE, host)
    if signer is None:
        raise _refused(
            tr("{path} is signed by nobody that {signers} names, or was changed since", path=path, signers=signers)
        )
    feed, before = _parse(text, str(path)), load(host)
    if feed.issued < before.issued:
        raise _refused(
            tr("{path} is of {day}, and what is known here is of {now}", path=path, day=feed.issued, now=before.issued)
        )
    host.write(ADVISORIES, text)
    return feed, signer


def _refused(why: str) -> InstallError:
    return InstallError(why, tr("get the list again from its maker; nothing was changed"), Exit.REFUSED)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(LONGEST + 1)
        if len(content) > LONGEST:
            raise ValueError(tr("it is longer than {bytes} bytes", bytes=LONGEST))
        return content.decode()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            tr("{path} cannot be read: {reason}", path=path, reason=reason),
            tr("a list FILE and its signature FILE.sig lie beside one another"),
        ) from None


def _parse(text: str, where: str) -> Feed:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise DataError(where, tr("it cannot be read")) from None
    whole = Section.of(where, content, "issued advisories")
    if not DAY.fullmatch(whole.text("issued")):
        raise DataError(where, tr("{name} should be {what}", name="issued", what=tr("a text")))
    each = whole.sections("advisories", "id package fixed summary source", "also introduced severity")
    return Feed(whole.text("issued"), tuple(map(_advisory, each)))


def _advisory(said: Section) -> Advisory:
    found = Advisory(
        said.text("id"), tuple(said.texts("also")), said.text("package"), said.text("introduced"), said.text("fixed"),
        said.text("severity"), said.text("summary"), said.text("source"),
    )  # fmt: skip
    versions = (*filter(None, [found.introduced]), found.fixed)
    fits = (
        all(ID.fullmatch(name) for name in (found.id, *found.also)),
        found.package in PACKAGES,
        all(VERSION.fullmatch(version) for version in versions),
        found.severity in ("", *SEVERITIES),
        found.summary.isprintable() and len(found.summary) <= 200,
        SOURCE.fullmatch(found.source) is not None,
    )
    if not all(fits):
        raise DataError(said.where, tr("{name} is no advisory as they are written", name=repr(found.id[:40])))
    return found
