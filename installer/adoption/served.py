"""What an old deployment serves: its model, its adapters, and where the hub's client kept their weights."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from installer.adoption.old import Old
from installer.base.errors import Refused
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import Layout
from installer.runtime.vllm_flags import Flag
from installer.runtime.vllm_text import one_line
from installer.spec import values
from installer.spec.settings import Settings
from installer.spec.values import BUILTIN
from installer.weights.sources import origins


def model(old: Old, typed: str, host: Host) -> dict[str, str]:
    """The settings that name it."""
    if not typed:
        raise Refused(tr("the vLLM command names no model"), tr("write it out: vllm serve MODEL"))
    if ours := _of_our_cache(old.on_host(typed)):
        return ours
    found = _found(old, typed, host)
    if found is None:
        raise Refused(
            tr("the model {typed} does not lie on this host", typed=typed),
            tr("name it: MODEL_NAME=HUB-ID or =DIRECTORY"),
        )
    return {"model": found}


def adapters(old: Old, words: tuple[str, ...], host: Host) -> str:
    """LORA, of those that the command names; the flags that go with them follow from these."""
    named = [_named_adapter(word) for word in words]
    found = ",".join(f"{name}={_adapter_source(old, name, source, host)}" for name, source in named)
    try:
        values.adapters(found)
    except ValueError as error:
        raise Refused(
            tr("--lora-modules cannot be carried over: {reason}", reason=error),
            tr("rename or remove it in the old command, then adopt that"),
        ) from None
    return found


def _named_adapter(word: str) -> tuple[str, str]:
    """NAME=PATH, or the same as JSON."""
    name, equals, path = word.partition("=")
    if equals and "," not in word:
        return name, path
    try:
        said = json.loads(word)
        return str(said["name"]), str(said["path"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Refused(
            tr("--lora-modules names no adapter: {word}", word=one_line(word, 60)),
            tr("mend or remove it in the old command, then adopt that"),
        ) from None


def _adapter_source(old: Old, name: str, source: str, host: Host) -> str:
    if ours := _of_our_cache(old.on_host(source)):
        return f"{ours['model']}@{ours['revision']}"
    found = _found(old, source, host)
    if found is None:
        raise Refused(
            tr("the adapter {name} in {path} does not lie on this host", name=name, path=source),
            tr("copy it here and name it: LORA={name}=DIRECTORY", name=name),
        )
    return found


def _found(old: Old, given: str, host: Host) -> str | None:
    """A directory here, or else what the hub calls it; None for a path that leads nowhere on this host."""
    path = old.on_host(given)
    if given.startswith(("/", ".")):
        is_mapped = not old.mounts or path != os.path.normpath(given)
        return path if is_mapped and host.exists(Path(path)) else None
    return path if host.at(Path(path)).is_dir() else given  # vLLM prefers a directory of that name to the hub


def _of_our_cache(path: str) -> dict[str, str]:
    """What stood in the settings for a model that lies in our cache, by its path there."""
    layout = Layout("any")
    if path == str(layout.builtin_models / "tiny"):
        return {"model": BUILTIN}
    found = re.fullmatch(rf"{re.escape(str(layout.hub))}/models--(.+)/snapshots/([0-9a-f]{{40}})", path)
    return {"model": found[1].replace("--", "/"), "revision": found[2]} if found else {}


def caches(old: Old, last: Mapping[str, Flag], settings: Settings, host: Host) -> Iterator[Path]:
    """Where the hub's client kept what it fetched for the old service, by its own order, as far as that is there."""
    said, home = old.environment, old.environment.get("HOME", old.home)
    general = said.get("XDG_CACHE_HOME", f"{home}/.cache")
    named = (
        last["--download-dir"].value if "--download-dir" in last else "",
        said.get("HF_HUB_CACHE", ""),
        said.get("HUGGINGFACE_HUB_CACHE", ""),
        f"{said.get('HF_HOME', f'{general}/huggingface')}/hub",
    )
    wanted = [settings, *map(settings.of_adapter, settings.lora)]
    folders = {origin.folder for each in wanted for origin in origins(each)}
    for place in filter(None, named):
        path = Path(old.on_host(place))
        is_mapped = not old.mounts or str(path) != place
        if is_mapped and path.is_absolute() and any(host.exists(path / folder) for folder in folders):
            yield path
