"""Made-up targets: what settings come to, without a host, a hub or an index to ask."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from installer.engines import Engine
from installer.keys import Key, digest
from installer.layout import Layout
from installer.models import Model
from installer.settings import Settings
from installer.steps import Wanted
from installer.target import Target

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DEFAULT_KEY = "sk-qwen3vl-of-the-golden-files"
PROBE_KEY = "sk-probe-of-the-golden-files"
KEYS = (Key("default", digest(DEFAULT_KEY)), Key("probe", digest(PROBE_KEY)))


def target(
    settings: Settings | None = None, *, kind: str = "cuda", keys: tuple[Key, ...] = KEYS, path: Path | None = None
) -> Target:
    settings = settings or Settings()
    name = "models--" + settings.model.replace("/", "--")
    hub = Layout(settings.service).hub
    return Target(
        settings=settings,
        engine=Engine(
            id=hashlib.sha256(kind.encode()).hexdigest()[:16],
            kind=kind,
            vllm_version=settings.vllm_version,
            python=Path("/usr/bin/python3.11"),
            lock=f"vllm=={settings.vllm_version}\n",
            request="vllm",
        ),
        model=Model(
            id=settings.model_id,
            path=path or hub / name / "snapshots" / COMMIT,
            commit=COMMIT if path is None else None,
            source="hub" if path is None else "directory",
        ),
        keys=keys,
    )


def wanted(settings: Settings | None = None, *, kind: str = "cuda", keys: tuple[Key, ...] = KEYS) -> Wanted:
    made = target(settings, kind=kind, keys=keys)
    return Wanted(made, Layout(made.settings.service), PROBE_KEY)


def with_settings(want: Wanted, **changed: object) -> Wanted:
    settings = dataclasses.replace(want.target.settings, **changed)  # type: ignore[arg-type]
    return dataclasses.replace(want, target=dataclasses.replace(want.target, settings=settings))
