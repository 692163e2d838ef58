"""A quadlet's vLLM: podman's own section of a unit, read by the same rules, and seen from the host."""

from __future__ import annotations

import json
from pathlib import Path

from installer.adoption.old import Old, read_text, serve_words
from installer.adoption.old_compose import chosen_gpus, listens, published
from installer.adoption.old_unit import Section, directives, words
from installer.base.errors import Refused
from installer.base.host import Host
from installer.base.language import tr
from installer.runtime import vllm_flags
from installer.spec.vendors import NVIDIA

SECTION = "[Container]"
ALL = "all"


def read(path: Path, host: Host) -> Old:
    text = read_text(path, host)
    section = Section(path.name, list(directives(text, path)), host, SECTION.strip("[]"))
    environment, texts = section.environment(path.parent)
    serve = _serve(section, path)
    mounts = [mount for value in section.last_of("Volume") if (mount := _mount(_plain(section, value), path.parent))]
    ports = [published(_plain(section, value), path) for value in section.last_of("PublishPort")]
    on_host = section.text("Network") == "host"
    return Old(
        words=serve,
        environment={**environment, **chosen_gpus(_gpus(section))},
        texts=(text, *texts),
        shown=text,
        mounts=tuple(mounts),
        listens=None if on_host else listens(ports, vllm_flags.given(serve).get("--port", "8000")),
        notes=(
            tr("the container is not stopped for you: systemctl stop {name}", name=path.stem),
            *_of_secrets(section),
        ),
        has_secret=bool(section.last_of("Secret")),
    )


def _serve(section: Section, path: Path) -> tuple[str, ...]:
    entrypoint, image = section.text("Entrypoint"), section.text("Image")
    try:
        first = json.loads(entrypoint) if entrypoint.startswith("[") else [entrypoint] * bool(entrypoint)
    except (ValueError, RecursionError):
        first = []
    after = words((section.last_of("Exec") or [""])[-1], section.unit)
    given = [*map(str, first), *(_plain(section, word) for word in after)]
    serve = serve_words(given)
    if serve is None and not first and "vllm" in image:
        serve = tuple(given[1:] if given[:1] == ["serve"] else given)  # the image's own entry point is vllm serve
    if serve is None:
        raise Refused(tr("{unit} does not start vLLM", unit=path), tr("name the quadlet whose Exec= runs vllm serve"))
    return serve


def _plain(section: Section, value: str) -> str:
    return section.specifiers(value).replace("$$", "$")


def _mount(value: str, directory: Path) -> tuple[str, str] | None:
    """(path inside, path on the host); a volume of podman's has no path that we could rely on."""
    source, _, rest = value.partition(":")
    inside = rest.partition(":")[0].rstrip("/")
    return (inside, str((directory / source).resolve())) if inside and source.startswith((".", "/")) else None


def _gpus(section: Section) -> list[str]:
    devices = [
        word for value in section.last_of("AddDevice") for word in words(section.specifiers(value), section.unit)
    ]
    prefix = f"{NVIDIA.resource}="
    return [word[len(prefix) :] for word in devices if word.startswith(prefix) and word != prefix + ALL]


def _of_secrets(section: Section) -> list[str]:
    names = [section.specifiers(value).partition(",")[0] for value in section.last_of("Secret")]
    show = "podman secret inspect --showsecret --format '{{.SecretData}}'"
    return [
        tr(
            "the key in podman's secret is not read; it goes on working after: {command}",
            command=f"{show} {name} | vllm-install set-apikey -",
        )
        for name in names
    ]
