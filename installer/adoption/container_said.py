"""The one table of how each thing about a container is said: to docker compose, as a quadlet, to Kubernetes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from installer.adoption.container import CACHE, ENVIRONMENT, PORT, USER, Container
from installer.units.syntax import literal, quote, quote_exec

Lines = tuple[tuple[str, str], ...]
Tree = Mapping[str, object]

HEALTH = f'import urllib.request as r; r.urlopen("http://127.0.0.1:{PORT}/health", timeout=5)'
EVERY, TIMES, START = 15, 4, 7200  # seconds between looks, failures in a row, seconds that a start may take
SHARED = 8  # GiB of shared memory at most: what engines on several GPUs talk through
KEY = "VLLM_API_KEY"
ENDS = 20  # seconds more than running requests get, as in our own unit
FILES = 65536
PIDS = 16384


@dataclass(frozen=True)
class Said:
    """One thing in the words of each form; Kubernetes has a pod and, in it, the container."""

    compose: Tree = field(default_factory=dict)
    quadlet: Lines = ()
    quadlet_service: Lines = ()
    pod: Tree = field(default_factory=dict)
    container: Tree = field(default_factory=dict)


def said(it: Container) -> list[Said]:
    return [say(it) for say in TABLE]


def merged(parts: Iterable[Tree]) -> dict[str, object]:
    """Mappings into one, to any depth; what is a list in several is one list."""
    whole: dict[str, object] = {}
    for part in parts:
        for name, value in part.items():
            held = whole.get(name)
            if isinstance(held, dict) and isinstance(value, Mapping):
                whole[name] = merged((held, value))
            elif isinstance(held, list) and isinstance(value, list):
                whole[name] = [*held, *value]
            else:
                whole[name] = value
    return whole


def raw(text: str) -> str:
    """A value that a quadlet takes as it stands; the unit made of it is read by systemd once more."""
    return literal(text).replace("$", "$$")


def in_cluster(text: str) -> str:
    """A word in which Kubernetes fills in no variable."""
    return text.replace("$", "$$")


def cluster_name(service: str) -> str:
    return service.replace("_", "-").rstrip("-")


def secret_name(service: str) -> str:
    return f"{service}-api-key"


# The rows


def _image(it: Container) -> Said:
    return Said({"image": it.image}, (("Image", raw(it.image)),), container={"image": it.image})


def _command(it: Container) -> Said:
    return Said(
        {"entrypoint": ["vllm"], "command": list(it.words)},
        (("Entrypoint", "vllm"), ("Exec", quote_exec(it.words))),
        container={"command": ["vllm"], "args": [in_cluster(word) for word in it.words]},
    )


def _environment(it: Container) -> Said:
    """Which GPUs there are to be seen is for a cluster to say."""
    lines = tuple(("Environment", quote(f"{name}={value}")) for name, value in it.environment.items())
    pairs = [{"name": name, "value": value} for name, value in ENVIRONMENT.items()]
    return Said({"environment": it.environment}, lines, container={"env": pairs})


def _key(it: Container) -> Said:
    """Never in the text: it says where the key is to be found."""
    name = secret_name(cluster_name(it.service))
    reference = {"secretKeyRef": {"name": name, "key": "api-key"}}
    return Said(
        {"env_file": [f"{it.service}.key.env"]},
        (("Secret", f"{secret_name(it.service)},type=env,target={KEY}"),),
        container={"env": [{"name": KEY, "valueFrom": reference}]},
    )


def _address(it: Container) -> Said:
    host = f"[{it.host}]" if ":" in it.host else it.host
    published = f"{host}:{it.port}:{PORT}"
    return Said(
        {"ports": [published]},
        (("PublishPort", raw(published)),),
        container={"ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}]},
    )


def _files(it: Container) -> Said:
    mounts = [
        {"type": "bind", "source": there, "target": inside, "read_only": True, "bind": {"create_host_path": False}}
        for there, inside in it.mounts
    ]
    volumes = [
        {"name": f"files-{number}", "hostPath": {"path": there}} for number, (there, _) in enumerate(it.mounts, 1)
    ]
    seen = [
        {"name": f"files-{number}", "mountPath": inside, "readOnly": True}
        for number, (_, inside) in enumerate(it.mounts, 1)
    ]
    return Said(
        {"volumes": mounts},
        tuple(("Volume", raw(f"{there}:{inside}:ro")) for there, inside in it.mounts),
        pod={"volumes": volumes},
        container={"volumeMounts": seen},
    )


def _scratch(it: Container) -> Said:
    """What vLLM compiles is run from there, so it cannot be noexec."""
    here, there = "/tmp:exec,mode=1777", f"{CACHE}:exec,mode=0700,uid={USER},gid={USER}"  # noqa: S108 the container's
    return Said(
        {"tmpfs": [here, there], "working_dir": CACHE},
        (("Tmpfs", here), ("Volume", f"{it.service}-cache:{CACHE}:U"), ("WorkingDir", CACHE)),
        pod={"volumes": [{"name": "tmp", "emptyDir": {}}, {"name": "cache", "emptyDir": {}}]},
        container={
            "workingDir": CACHE,
            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, {"name": "cache", "mountPath": CACHE}],  # noqa: S108
        },
    )


def _gpus(it: Container) -> Said:
    if it.vendor is None:
        return Said()
    limits = {"resources": {"limits": {it.vendor.resource: it.count}}}
    pod = {"securityContext": {"supplementalGroups": list(it.groups)}} if it.groups else {}
    if it.vendor.names_devices:
        asked = {"device_ids": list(it.gpus)} if it.gpus else {"count": it.count}
        device = {"driver": it.vendor.name, **asked, "capabilities": ["gpu"]}
        lines = tuple(("AddDevice", f"{it.vendor.resource}={uuid}") for uuid in it.gpus or ("all",))
        return Said({"deploy": {"resources": {"reservations": {"devices": [device]}}}}, lines, container=limits)
    groups = [str(group) for group in it.groups]
    return Said(
        {"devices": [f"{node}:{node}" for node in it.nodes], **({"group_add": groups} if groups else {})},
        (*(("AddDevice", node) for node in it.nodes), *(("GroupAdd", group) for group in groups)),
        pod=pod,
        container=limits,
    )


def _shared_memory(it: Container) -> Said:
    return Said(
        {"shm_size": f"{SHARED}gb"},
        (("ShmSize", f"{SHARED}g"),),
        pod={"volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{SHARED}Gi"}}]},
        container={"volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}]},  # noqa: S108 as above
    )


def _limits(it: Container) -> Said:
    return Said(
        {"ulimits": {"memlock": -1, "nofile": FILES, "core": 0}},
        (
            ("Ulimit", "memlock=-1:-1"), ("Ulimit", f"nofile={FILES}:{FILES}"), ("Ulimit", "core=0:0"),
            ("PidsLimit", str(PIDS)),
        ),
    )  # fmt: skip


def _stop(it: Container) -> Said:
    seconds = it.drain + ENDS
    return Said(
        {"stop_grace_period": f"{seconds}s", "init": True},
        (("StopTimeout", str(seconds)), ("RunInit", "true")),
        (("TimeoutStopSec", str(seconds + ENDS)),),
        pod={"terminationGracePeriodSeconds": seconds},
    )


def _health(it: Container) -> Said:
    """As a quadlet's value it may not end with a double quote, which podman 5.4 takes off."""
    look = ["python3", "-c", HEALTH]
    times = {"interval": f"{EVERY}s", "timeout": f"{EVERY}s", "retries": TIMES, "start_period": f"{START}s"}
    asked = {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": EVERY, "timeoutSeconds": EVERY}
    return Said(
        {"healthcheck": {"test": ["CMD", *look], **times}},
        (
            ("HealthCmd", f"python3 -c '{HEALTH}'"), ("HealthInterval", f"{EVERY}s"), ("HealthTimeout", f"{EVERY}s"),
            ("HealthRetries", str(TIMES)), ("HealthStartPeriod", f"{START}s"), ("HealthOnFailure", "kill"),
        ),
        container={
            "startupProbe": {**asked, "failureThreshold": START // EVERY},
            "readinessProbe": {**asked, "failureThreshold": 1},
            "livenessProbe": {**asked, "failureThreshold": TIMES},
        },
    )  # fmt: skip


def _restart(it: Container) -> Said:
    return Said(
        {"restart": "always"},
        quadlet_service=(("Restart", "always"), ("RestartSec", "5"), ("TimeoutStartSec", "2h")),
        pod={"restartPolicy": "Always"},
    )


def _sandbox(it: Container) -> Said:
    return Said(
        {"read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"]},
        (("ReadOnly", "true"), ("DropCapability", "all"), ("NoNewPrivileges", "true")),
        pod={
            # A service in the cluster that is called vllm would set VLLM_PORT, and that to no number.
            "enableServiceLinks": False,
            "automountServiceAccountToken": False,
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        },
        container={
            "securityContext": {
                "readOnlyRootFilesystem": True,
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
        },
    )


def _user(it: Container) -> Said:
    whose = {"runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER}
    return Said(
        {"user": f"{USER}:{USER}"},
        (("User", str(USER)), ("Group", str(USER))),
        pod={"securityContext": whose},
    )


TABLE: tuple[Callable[[Container], Said], ...] = (
    _image, _command, _environment, _key, _address, _files, _scratch, _gpus, _shared_memory, _limits, _stop, _health,
    _restart, _sandbox, _user,
)  # fmt: skip
