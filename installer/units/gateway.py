"""The gateway before a service's replicas: who has one, and the text of its unit and of HAProxy's configuration."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from installer import __version__
from installer.base.host import Host
from installer.base.layout import UNITS, Layout
from installer.base.templates import template
from installer.forms.venv import python_of
from installer.runtime.vllm_haproxy import SOCKET
from installer.spec.settings import Settings
from installer.spec.target import Target
from installer.units.api import ONLY_HERE
from installer.units.graph import Member
from installer.units.haproxy import HELD, HOLD
from installer.units.syntax import FILTERS

MADE_BY = "Rendered by vllm-install"
GRACE = 3  # seconds before another endpoint is asked: a replica that is out of breath for a moment is not down
KNOWN_BY = "x-vllm-conversation"  # a header between the two HAProxies
# What HAProxy itself answers: message, type and code as OpenAI's clients know them.
ERRORS = {
    400: ("the request cannot be understood", "invalid_request_error"),
    500: ("the gateway failed", "server_error"),
    502: ("the engine ended before it answered", "server_error"),
    503: ("no replica of the model is up", "service_unavailable"),
    504: ("the engine did not answer in time", "server_error"),
}


def needs_gateway(settings: Settings) -> bool:
    """One engine alone is the service itself, at no cost; one that listens to its group alone is reached by it."""
    is_closed = bool(settings.group_hosts) and not settings.is_local
    before_others = is_closed or bool(settings.gateway_hosts)
    return settings.replicas > 1 or settings.has_tls or settings.fallback_url is not None or before_others


def config_file(layout: Layout) -> Path:
    return Path("/etc/vllm-install") / f"{layout.service}.haproxy.cfg"


def is_ours(config: str) -> bool:
    return config.startswith(f"# {MADE_BY}")


def gateway_files(target: Target, layout: Layout, runtime: Path) -> dict[Path, str]:
    """The unit that people type, and what HAProxy reads; none for a service that is its one engine."""
    if not target.replicas:
        return {}
    return {
        layout.unit: gateway_unit(target, layout, runtime),
        config_file(layout): gateway_config(target, layout, runtime),
    }


def certificate_files(settings: Settings, layout: Layout) -> tuple[Path, Path] | None:
    """Certificate and key as root finds them."""
    if settings.tls_cert and settings.tls_key:
        return Path(settings.tls_cert), Path(settings.tls_key)
    if settings.tls == "self":
        return layout.state_dir / "tls.pem", layout.state_dir / "tls.key"
    return None


def certificate_of(host: Host, member: Member, settings: Settings) -> str | None:
    """What it has to present to whom it asks for a key; None where it speaks plain HTTP, as every replica does."""
    files = None if member.number else certificate_files(settings, member.layout)
    try:
        return (host.read(files[0]) or "") if files else None
    except PermissionError:
        return ""  # only root may see it: then nobody is believed to be the service


# The texts


def gateway_unit(target: Target, layout: Layout, runtime: Path) -> str:
    return _unit(target, layout, runtime, gateway_digest(target, layout, runtime))


def gateway_digest(target: Target, layout: Layout, runtime: Path) -> str:
    """Stands for what only a restart applies: which replicas there are is said to systemd and HAProxy, by a reload."""
    service = _unit(target, layout, runtime, "").partition("\n[Service]\n")[2]
    return hashlib.sha256(service.encode()).hexdigest()[:16]


def _unit(target: Target, layout: Layout, runtime: Path, digest: str) -> str:
    settings = target.settings
    command = [str(python_of(layout.engines / target.engine.id)), "-EsS", str(runtime / "vllm_gateway.py")]
    certificate = certificate_files(settings, layout)
    return template("gateway.service.j2", FILTERS).render(
        version=__version__,
        layout=layout,
        settings=settings,
        model_id=target.model.id,
        members=[f"{layout.service}@{replica.number}.service" for replica in target.replicas],
        exec_start=[*command, "run", *_listen(settings), *_fallback(target, layout), str(config_file(layout))],
        exec_reload=[*command, "reload", *_tls(certificate), str(config_file(layout))],
        certificate=[str(path) for path in certificate or ()],
        digest=digest,
        local_only=settings.is_local and not settings.fallback_url,
    )


def _listen(settings: Settings) -> list[str]:
    return ["--host", settings.host, "--port", str(settings.port)]


def _tls(certificate: tuple[Path, Path] | None) -> list[str]:
    return ["--certificate", str(certificate[0]), "--key", str(certificate[1])] if certificate else []


def _fallback(target: Target, layout: Layout) -> list[str]:
    """Who may ask there stands in a replica's unit, as all of them have the same keys."""
    settings = target.settings
    if not settings.fallback_url:
        return []
    model = ["--fallback-model", settings.fallback_model] if settings.fallback_model else []
    unit = UNITS / f"{layout.service}@{target.replicas[0].number}.service"
    return ["--fallback", settings.fallback_url, "--keys", str(unit), *model]


def gateway_config(target: Target, layout: Layout, runtime: Path) -> str:
    """Nothing that a user types stands in it but numbers and the service's own name."""
    settings = target.settings
    waits = min(settings.hold, GRACE) if settings.fallback_url else settings.hold or None
    return template("gateway.cfg.j2").render(
        version=__version__,
        layout=layout,
        settings=settings,
        runtime=runtime,
        replicas=target.replicas,
        others=target.others,
        only_here=ONLY_HERE,
        waits=waits,
        socket=SOCKET,
        hold=HOLD,
        held=HELD,
        known_by=KNOWN_BY,
        errors=ERRORS,
        problem=_problem,
    )


def _problem(message: str, kind: str) -> str:
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": "gateway"}})
