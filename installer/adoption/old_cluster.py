"""The vLLM of a Kubernetes manifest: command, variables and mounts of its container, seen from a host."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from installer.adoption.old import Old, serve_words
from installer.adoption.old_compose import entries, load_documents
from installer.base.errors import Refused
from installer.base.host import Host
from installer.base.language import tr
from installer.runtime import vllm_flags

_MANIFEST = re.compile(r"^apiVersion\s*:", re.MULTILINE)
ENTRY_POINT = ("vllm", "serve")  # of vLLM's own image


def is_manifest(text: str) -> bool:
    return _MANIFEST.search(text) is not None


def read(path: Path, text: str, host: Host) -> Old:
    documents = load_documents(text, str(path))
    found = [(pod, each, document) for document in documents for pod in _pods(document) for each in _containers(pod)]
    if len(found) != 1:
        raise Refused(
            tr("{path} has {count} containers that run vLLM", path=path, count=len(found)),
            tr("put the one to adopt into a file of its own"),
        )
    pod, container, document = found[0]
    command = [str(word) for word in entries(container, "command")] or list(ENTRY_POINT)
    words = [*command, *(str(word) for word in entries(container, "args"))]
    serve = serve_words([word.replace("$$", "$") for word in words])
    if serve is None:
        raise Refused(
            tr("{path} does not start vLLM", path=path), tr("expected a container whose command is vllm serve")
        )
    variables = [each for each in entries(container, "env") if isinstance(each, dict)]
    return Old(
        words=serve,
        environment={str(v.get("name")): str(v["value"]).replace("$$", "$") for v in variables if "value" in v},
        texts=(text,),
        shown=text,
        mounts=tuple(_mounts(pod, container)),
        listens=_listens(documents, vllm_flags.given(serve).get("--port", "8000")),
        notes=(tr("what runs in the cluster is not stopped for you: kubectl delete -f {path}", path=path),
               *_replicas(document)),
        has_secret=any("valueFrom" in v for v in variables),
    )  # fmt: skip


def _pods(document: object) -> Iterator[dict[str, object]]:
    """Of a Pod, or of whatever makes pods."""
    spec = _below(document, "spec")
    pod = _below(spec, "template", "spec") or spec
    if entries(pod, "containers"):
        yield pod


def _containers(pod: dict[str, object]) -> Iterator[dict[str, object]]:
    for each in entries(pod, "containers"):
        if isinstance(each, dict) and any("vllm" in str(each.get(name, "")) for name in ("image", "command", "args")):
            yield each


def _below(value: object, *names: str) -> dict[str, object]:
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _mounts(pod: dict[str, object], container: dict[str, object]) -> Iterator[tuple[str, str]]:
    """(path inside, path on the host); of other volumes nobody knows here where they lie."""
    volumes = [each for each in entries(pod, "volumes") if isinstance(each, dict)]
    paths = {str(each.get("name")): str(_below(each, "hostPath").get("path", "")) for each in volumes}
    for mount in entries(container, "volumeMounts"):
        if isinstance(mount, dict) and (there := paths.get(str(mount.get("name")), "")).startswith("/"):
            yield str(mount.get("mountPath", "")).rstrip("/"), there


def _listens(documents: list[object], inside: str) -> tuple[str, int]:
    """A Service's port, on every address; without one what the container itself listens on."""
    services = [_below(document, "spec") for document in documents if _kind(document) == "Service"]
    ports = [str(port.get("port")) for each in services for port in entries(each, "ports") if isinstance(port, dict)]
    port = next(filter(str.isdecimal, (*ports, inside)), "8000")
    return "0.0.0.0", int(port)  # noqa: S104 as a cluster has it


def _kind(document: object) -> object:
    return document.get("kind") if isinstance(document, dict) else None


def _replicas(document: object) -> list[str]:
    count = str(_below(document, "spec").get("replicas") or "1")
    if not count.isdecimal() or int(count) < 2:
        return []
    return [tr("it has {count} replicas; here as many are REPLICAS={count}", count=count)]
