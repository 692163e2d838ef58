"""What a user asks for with one command that changes a service."""

from __future__ import annotations

from dataclasses import dataclass

from installer.airgap.bundle_file import Bundle
from installer.spec.former import Former
from installer.spec.keys import Key
from installer.spec.offer import Elsewhere
from installer.spec.settings import Settings


@dataclass(frozen=True)
class KeyChoice:
    """How the user wants the service's key handled; the default keeps the one there is or makes one."""

    given: str | None = None
    plain: bool = False
    further: tuple[str, ...] = ()  # keys that are to work beside it
    held: tuple[Key, ...] = ()  # keys known by their digests, of a unit that is adopted again


@dataclass(frozen=True)
class Request:
    """One change that a user asks for."""

    verb: str
    settings: Settings
    keys: KeyChoice = KeyChoice()
    discard_edits: bool = False
    new_commit: bool = False  # look for a newer one even where the model's name and revision stay the same
    new_packages: bool = False  # those that are offered even where an engine of the same version is here
    resolve: bool = False  # of these the newest, and not those of a tested lock
    bundle: Bundle | None = None  # engine and model come from here; its settings are among the settings
    former: Former | None = None  # the unit whose place the service is to take
    environment: tuple[tuple[str, str], ...] = ()  # variables that come along with it
    caches: tuple[Elsewhere, ...] = ()  # of the hub's, that the service used before it was ours; or of other hosts
    soak: int | None = None  # seconds for which it is watched after its proof
