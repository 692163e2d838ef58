"""What a host of a group has of a model, said to another one that is to serve it too: a list, and never the bytes.

Whoever gets it believes nothing of it where a hub can be asked, and takes no byte that has not the sum that is listed.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from installer.spec.model import COMMIT, PROVIDERS, ModelFile, Origin
from installer.spec.values import HUB_ID

MOST_TEXT = 64 << 20  # bytes of all small files together
MOST_PACKED = 1 << 20  # of them, packed: they are part of a line


@dataclass(frozen=True)
class Need:
    """A model as one host is to serve it."""

    repo: str
    revision: str | None
    provider: str
    commit: str = ""  # none where nobody could be asked
    files: tuple[ModelFile, ...] = ()
    missing: int = 0  # bytes
    gives: bool = False  # all is there, was seen to be right, and root alone can change it
    takes: bool = False  # root alone can change what is put there
    texts: str = ""  # of its small files, packed

    @property
    def key(self) -> tuple[str, str, str | None]:
        return self.provider, self.repo, self.revision

    @property
    def lacks(self) -> bool:
        return not self.commit or self.missing > 0


@dataclass(frozen=True)
class Offer:
    host: str  # that has it
    repo: str
    revision: str | None
    provider: str
    commit: str
    files: tuple[ModelFile, ...]
    texts: str = ""

    def __post_init__(self) -> None:
        """Another host says so, and it becomes a place in the cache."""
        if not (HUB_ID.fullmatch(self.repo) and COMMIT.fullmatch(self.commit) and self.provider in PROVIDERS):
            raise ValueError(self.repo)

    @property
    def origin(self) -> Origin:
        return Origin(self.repo, self.revision, None, self.provider)

    def is_of(self, origin: Origin) -> bool:
        return (self.provider, self.repo, self.revision) == (origin.provider, origin.repo, origin.revision)


Elsewhere = Path | Offer  # where a model may be as well: in another hub cache of this host, or on another host


def offer_of(need: Need, host: str) -> Offer:
    return Offer(host, need.repo, need.revision, need.provider, need.commit, need.files, need.texts)


def packed(texts: Mapping[str, str]) -> str:
    """Nothing where it would be too long: then a hub is asked for them."""
    found = base64.b64encode(zlib.compress(json.dumps(texts).encode())).decode()
    return found if len(found) <= MOST_PACKED else ""


def unpacked(text: str) -> dict[str, str]:
    """What was packed, by whomever; nothing where it was not."""
    opened = zlib.decompressobj()
    try:
        found = json.loads(opened.decompress(base64.b64decode(text, validate=True), MOST_TEXT))
    except (ValueError, binascii.Error, zlib.error, RecursionError):
        return {}
    return {str(name): said for name, said in found.items() if isinstance(said, str)} if isinstance(found, dict) else {}
