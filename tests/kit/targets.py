"""Made-up targets: what settings come to, without a host, a hub or an index to ask."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from installer.base.layout import Layout
from installer.flow.wanted import Wanted
from installer.spec.engine import Engine
from installer.spec.keys import Key, digest
from installer.spec.model import Model
from installer.spec.profile import Profile
from installer.spec.settings import PODMAN, Settings
from installer.spec.target import Adapter, Placed, Replica, Target
from installer.spec.toolkit import Toolkit
from installer.spec.values import BUILTIN

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DEFAULT_KEY = "sk-qwen3vl-of-the-golden-files"
PROBE_KEY = "sk-probe-of-the-golden-files"
QWEN3_VL = Profile("Qwen3-VL", "hermes", None, takes_images=True)
KEYS = (Key("default", digest(DEFAULT_KEY)), Key("probe", digest(PROBE_KEY)))


def target(
    settings: Settings | None = None, *, kind: str = "cuda", keys: tuple[Key, ...] = KEYS, path: Path | None = None
) -> Target:
    settings = settings or Settings()
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
        model=_model(settings, path),
        keys=keys,
        profile=QWEN3_VL if settings.model == Settings.model else Profile(),
        toolkit=Toolkit() if kind == "cuda" else None,
        adapters=tuple(Adapter(_model(settings.of_adapter(given), None), 16) for given in settings.lora),
    )


def boxed(kind: str, settings: Settings, *gpus: Placed) -> Target:
    """The same in a container."""
    made = target(dataclasses.replace(settings, runtime=PODMAN), kind=kind)
    engine = dataclasses.replace(made.engine, lock="", image=f"sha256:{'1f' * 32}")
    return dataclasses.replace(made, engine=engine, toolkit=None, gpus=gpus)


def _model(settings: Settings, path: Path | None) -> Model:
    layout = Layout(settings.service)
    if path is not None or settings.model.startswith("/srv/"):
        return Model(settings.model_id, path or Path(settings.model), None, "local")
    if settings.model == BUILTIN:
        return Model(settings.model_id, layout.builtin_models / "tiny", None, "builtin")
    folder = layout.hub / ("models--" + settings.model.replace("/", "--"))
    return Model(settings.model_id, folder / "snapshots" / COMMIT, COMMIT, "hub", repo=settings.model)


def wanted(settings: Settings | None = None, *, kind: str = "cuda", keys: tuple[Key, ...] = KEYS) -> Wanted:
    made = target(settings, kind=kind, keys=keys)
    return Wanted(made, Layout(made.settings.service), PROBE_KEY)


def replicated(*gpus: tuple[Placed, ...], kind: str = "cpu", **settings: object) -> Wanted:
    """A service of as many replicas as there are sets of GPUs."""
    want = with_settings(wanted(kind=kind), replicas=len(gpus), **settings)
    want = dataclasses.replace(want, layout=Layout(want.target.settings.service))
    replicas = tuple(Replica(number, 20000 + number, each) for number, each in enumerate(gpus, 1))
    every = tuple(dict.fromkeys(gpu for each in gpus for gpu in each))
    return dataclasses.replace(want, target=dataclasses.replace(want.target, gpus=every, replicas=replicas))


def with_settings(want: Wanted, **changed: object) -> Wanted:
    settings = dataclasses.replace(want.target.settings, **changed)  # type: ignore[arg-type]
    return dataclasses.replace(want, target=dataclasses.replace(want.target, settings=settings))
