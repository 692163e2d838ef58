"""What doctor looks at in the settings file and in the keys: what is not valid, not in force, expired, or weak."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

from installer.base.errors import InstallError, UsageError
from installer.base.language import tr
from installer.diagnosis.finding import NOTE, Finding
from installer.diagnosis.scene import Scene
from installer.runtime.vllm_text import one_line
from installer.spec import guessing, keys, settings_file
from installer.spec.asked import load_settings
from installer.spec.settings import FIELDS
from installer.units import keyring

SOON = timedelta(days=7)


def check_settings(scene: Scene) -> Iterator[Finding]:
    path = scene.layout.settings_file
    edit = f"sudoedit {path}"
    try:
        values = settings_file.parse(scene.host.read(path) or "", path)
        wanted = load_settings(scene.service, values, {}, {})
    except UsageError as error:
        yield Finding("settings-malformed", tr("the settings file is not valid"), one_line(error.message), (edit,))
        return
    for warning in settings_file.unknown(values):
        yield Finding("settings-unknown", tr("{what}: {why}", what=path, why=warning), str(path), (edit,), NOTE)
    proved = scene.state.proved.settings if scene.state and scene.state.proved else None
    changed = [name for name in FIELDS if proved and getattr(wanted, name) != getattr(proved, name)]
    if changed:
        names = ", ".join(FIELDS[name].names[0] for name in changed)
        cause = tr("the settings file was changed, but not put into force: {names}", names=names)
        yield Finding("settings-not-applied", cause, str(path), (scene.deploy,), NOTE)


def check_keys(scene: Scene) -> Iterator[Finding]:
    unit, now = keyring.first_unit(scene.host, scene.layout), datetime.now(timezone.utc)
    new = f"sudo vllm-install set-apikey --service {scene.service}"
    try:
        held = [key for key in keyring.unit_keys(scene.host, scene.layout) if key.name != keys.PROBE]
    except InstallError as error:
        yield Finding("key-malformed", error.message, str(unit), (f"sudoedit {unit}", scene.deploy))
        return
    asking = [key for key in held if key.role != "metrics"]
    alive = [key for key in asking if not keys.is_expired(key, keys.stamp(now))]
    if scene.unit_text and not alive:
        cause = tr("every key that can ask the model has expired") if asking else tr("no key can ask the model")
        yield Finding(
            "keys-expired",
            cause,
            tr(", ").join(tr("{name} until {expiry}", name=k.name, expiry=k.expiry) for k in asking),
            (new,),
        )
    for key in held:
        if key.expiry and key in alive and key.expiry < keys.stamp(now + SOON) and not key.is_grace:
            # Its clients go on with it until it ends, and not only until somebody reads this.
            again = f"{new} --name {key.name} --keep-old {SOON.days}d"
            yield Finding(
                "key-expires",
                tr("the key {name} expires soon", name=key.name),
                tr("until {expiry}", expiry=key.expiry),
                (again,),
                NOTE,
            )
        if guessing.is_first_guess(key.digest) or (key.plain and guessing.is_weak(key.plain)):
            cause = tr(
                "the key {name} can be guessed: its digest is public, and among the first that anybody tries",
                name=key.name,
            )
            yield Finding("key-guessable", cause, str(unit), (f"{new} --name {key.name}",))
        if key.plain:
            cause = tr("the key {name} stands in the unit as it is: every local user can read it", name=key.name)
            yield Finding("key-plain", cause, str(unit), (f"{new} --name {key.name}",), NOTE)


def check_same_keys(scene: Scene) -> Iterator[Finding]:
    """A key that only one replica knows works now and then; one that was revoked may still work somewhere."""
    first, *others = keyring.key_units(scene.host, scene.layout) or [scene.member]
    held = _in_force(scene, first.path)
    for path in (unit.path for unit in others):
        if differ := sorted({name for name, _ in _in_force(scene, path) ^ held}):
            cause = tr("{path} has other keys than {first}", path=path, first=first.path)
            yield Finding("keys-differ", cause, tr(", ").join(differ), (scene.deploy,))


def _in_force(scene: Scene, path: Path) -> frozenset[tuple[str, str]]:
    """The keys that a unit would put into force; none where it could not start with them."""
    try:
        return keyring.in_force(keyring.keys_in(scene.file(path) or ""))
    except InstallError:
        return frozenset()
