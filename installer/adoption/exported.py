"""What runs a proved service without us, as text: docker compose, a quadlet or Kubernetes; and what is lost with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from installer import __version__
from installer.adoption.container import Container, container_of
from installer.adoption.container_said import KEY, Lines, Said, cluster_name, merged, said, secret_name
from installer.adoption.lost import Loss, losses
from installer.adoption.yaml_text import to_yaml
from installer.base.errors import Refused, UsageError
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import Layout
from installer.families.known import family_of
from installer.families.vllm.family import VLLM
from installer.runtime.vllm_text import one_line
from installer.spec.keys import PROBE, Key
from installer.spec.records import proved_target
from installer.spec.target import Target
from installer.units.keyring import unit_keys
from installer.units.syntax import literal


@dataclass(frozen=True)
class Exported:
    image: str
    text: str
    lost: tuple[Loss, ...]


def export(service: str, form: str, image: str | None, host: Host) -> Exported:
    layout = Layout(service)
    target = proved_target(host, layout)
    if (family := family_of(target.settings)) is not VLLM:
        raise Refused(
            tr("{service} serves with {engine}, and only vLLM is exported", service=service, engine=family.title),
            f"sudo vllm-install set --service {service} ENGINE_FAMILY=vllm",
        )
    held = [key for key in unit_keys(host, layout) if key.name != PROBE]
    it = container_of(target, image, host)
    lost = tuple(losses(form, target, it, held, layout, host))
    return Exported(it.image, f"{head(target, it, held, lost, form)}\n{FORMS[form](it)}", lost)


# What stands at the top. It is for whoever reads the file later, so it is English as all that goes onto a host.


def head(target: Target, it: Container, held: Sequence[Key], lost: Sequence[Loss], form: str) -> str:
    """Comments, of which none ends as a line that goes on below."""
    key = _comments("The key", _where_from(it, held), FILLED[form](it))
    lines = [*_made_of(target, it), *key, *_comments("Not said in here", [f"- {loss.english}" for loss in lost])]
    return "".join(f"# {line}".rstrip().rstrip("\\") + "\n" for line in lines)


def _made_of(target: Target, it: Container) -> list[str]:
    version = target.engine.vllm_version
    return [
        f"vLLM {version} serving {one_line(it.model_id)}, written by vllm-install {__version__} from the service",
        f"{it.service} as it was proved. It runs without vllm-install. The image is another build of vLLM than the one",
        "that was proved: try it before you rely on it. Pin it by its digest once you have.",
    ]


def _comments(title: str, *parts: Sequence[str]) -> list[str]:
    return ["", f"{title}:", *(f"  {line}" for part in parts for line in part)]


def _where_from(it: Container, held: Sequence[Key]) -> list[str]:
    if any(key.plain for key in held):
        return [
            "is not in here. One stands in the service's unit verbatim, which root reads with",
            f"vllm-install client-config --format env --show-key {it.service}",
        ]
    return [
        "is not in here, and cannot be had from the service, which knows its keys by their digests alone. Take the",
        "one that clients have, or make a new one (openssl rand -hex 32).",
    ]


def _key_of_compose(it: Container) -> list[str]:
    return [
        "Beside this file, in sh:",
        "read -r key && (umask 077; printf \"%s='%s'\\n\" " + f'{KEY} "$key" >{it.service}.key.env)',
        f"Stop {it.service}.service first, which holds port and memory; then: docker compose -f FILE up -d",
    ]


def _key_of_quadlet(it: Container) -> list[str]:
    return [
        "Give it to podman, in sh:",
        f'read -r key && printf %s "$key" | podman secret create {secret_name(it.service)} -',
        f"Stop {it.service}.service first, which holds port and memory. Put this file into /etc/containers/systemd, as",
        f"{it.service}.container once that unit is gone and under another name before; then: systemctl daemon-reload",
    ]


def _key_of_cluster(it: Container) -> list[str]:
    name = secret_name(cluster_name(it.service))
    return [
        "Give it to the cluster, in sh:",
        'read -r key && printf %s "$key" |',
        f"  kubectl create secret generic {name} --from-file=api-key=/dev/stdin",
    ]


# The forms


def _compose(it: Container) -> str:
    service = _without_variables(merged(each.compose for each in said(it)))
    return to_yaml({"services": {it.service: service}})


def _without_variables(value: object) -> object:
    """Compose fills in variables wherever a text stands."""
    if isinstance(value, Mapping):
        return {name: _without_variables(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_variables(each) for each in value]
    return value.replace("$", "$$") if isinstance(value, str) else value


def _quadlet(it: Container) -> str:
    if unsayable := next((there for there, _ in it.mounts if ":" in there), ""):
        raise UsageError(
            tr("a quadlet cannot mount {path}: a colon ends a path there", path=unsayable),
            tr("move it to a path without one, or choose another --format"),
        )
    table = said(it)
    network = (("Wants", "network-online.target"), ("After", "network-online.target"))
    patience = (("StartLimitIntervalSec", "1h"), ("StartLimitBurst", "5"))
    sections: tuple[tuple[str, Lines], ...] = (
        ("Unit", (("Description", literal(f"vLLM serving {it.model_id}")), *network, *patience)),
        ("Container", (("ContainerName", it.service), *_all(table, "quadlet"))),
        ("Service", _all(table, "quadlet_service")),
        ("Install", (("WantedBy", "multi-user.target"),)),
    )
    return "\n".join(f"[{name}]\n" + "".join(f"{key}={value}\n" for key, value in lines) for name, lines in sections)


def _all(table: Sequence[Said], form: str) -> Lines:
    return tuple(line for each in table for line in getattr(each, form))


def _kubernetes(it: Container) -> str:
    name, table = cluster_name(it.service), said(it)
    labels = {"app.kubernetes.io/name": "vllm", "app.kubernetes.io/instance": name}
    container = {"name": "vllm", **merged(each.container for each in table)}
    pod = {**merged(each.pod for each in table), "containers": [container]}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "replicas": it.replicas,
            "strategy": {"type": "Recreate"},  # a second one beside it would need as many GPUs again
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }
    port = {"name": "http", "port": it.port, "targetPort": "http", "protocol": "TCP"}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": labels},
        "spec": {"selector": labels, "ports": [port]},
    }
    return f"{to_yaml(deployment)}---\n{to_yaml(service)}"


FILLED: Mapping[str, Callable[[Container], list[str]]] = {
    "quadlet": _key_of_quadlet,
    "compose": _key_of_compose,
    "k8s": _key_of_cluster,
}
FORMS: Mapping[str, Callable[[Container], str]] = {"quadlet": _quadlet, "compose": _compose, "k8s": _kubernetes}
