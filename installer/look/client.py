"""What a client needs to use a service: address, model and key."""

from __future__ import annotations

import ipaddress
import os
import socket
from dataclasses import dataclass

from installer.base.errors import Refused, UsageError
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import Layout
from installer.base.report import Report
from installer.runtime.vllm_certificate import covers
from installer.spec.keys import PROBE
from installer.spec.records import proved_target
from installer.spec.settings import Settings
from installer.units.api import local_address
from installer.units.authority import CERTIFICATE, certificate_names
from installer.units.custody import Custody
from installer.units.keyring import unit_keys
from installer.units.processes import Address


@dataclass(frozen=True)
class Client:
    base_url: str
    model: str
    key: str | None = None  # None: the client takes it from its own environment
    authority: str | None = None  # file with the certificate to trust, where nobody knows who signed it
    context: int | None = None  # tokens; None where vLLM chose it
    takes_images: bool = False
    calls_tools: bool = False


def client_of(service: str, host: Host, report: Report, *, far: str | None = None, show_key: bool = False) -> Client:
    """How a service is reached from this host, or from the host `far`."""
    layout = Layout(service)
    target = proved_target(host, layout)
    address = (
        _address_for(far, target.settings.host, report) if far is not None else local_address(target.settings.host)
    )
    key = _plain_key(host, layout) if show_key else None
    here = local_address(target.settings.host)
    if stranger := Custody(host, layout.unit_name, layout.user).stranger(here, target.settings.port):
        held = tr("port {port} is held by {holder}", port=target.settings.port, holder=stranger)
        report.warn(tr("send no key there now: {why}", why=held))
    address = _name_for(address, target.settings, host)
    if (is_own := target.settings.tls == "self" and not target.settings.tls_cert) and far is not None:
        report.note(tr("copy {path} there: it says whom the client may trust", path=CERTIFICATE))
    return Client(
        base_url(target.settings, address), target.model.id, key, str(CERTIFICATE) if is_own else None,
        target.settings.max_model_len, target.profile.takes_images, target.profile.tool_parser is not None,
    )  # fmt: skip


def base_url(settings: Settings, address: str) -> str:
    scheme = "https" if settings.has_tls else "http"
    return f"{scheme}://{f'[{address}]' if ':' in address else address}:{settings.port}/v1"


def _name_for(address: str, settings: Settings, host: Host) -> str:
    """A name that the certificate has, where it does not have the address."""
    names = certificate_names(settings, host)
    if not names or covers(names, address):
        return address
    return next((name for name in names if not name.startswith("*")), address)


# The address


def _address_for(far: str, listen: str, report: Report) -> str:
    """The address of this host that the far one's packets reach, as far as the service listens there."""
    wanted = ipaddress.ip_address("127.0.0.1" if listen == "localhost" else listen)
    found = [_route(target) for target in _resolve(far, wanted)]
    routed = next((ours for ours in found if ours), None)
    if routed is None:
        raise Refused(tr("this host has no route to {far}", far=far), tr("ip route get shows what it knows"))
    ours, is_here = routed
    if wanted.is_loopback and not is_here:
        report.warn(
            tr(
                "the service listens on {listen}, where {far} cannot reach it; "
                "let it listen on every address: sudo vllm-install set LISTEN_HOST=0.0.0.0",
                listen=listen,
                far=far,
            )
        )
    return ours if wanted.is_unspecified else local_address(listen)


def _resolve(far: str, listen: Address) -> list[Address]:
    """Where the far host is; a service that listens on IPv4 alone is reached by IPv4 alone."""
    family = socket.AF_UNSPEC if listen.version == 6 else socket.AF_INET
    try:
        if not far:
            raise OSError(tr("it is empty"))
        if far == "localhost":  # known without a resolver, which a bare host may lack
            far = "127.0.0.1" if family == socket.AF_INET else "::1"
        found = socket.getaddrinfo(far, 9, family, socket.SOCK_DGRAM)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        only = tr("; the service listens on IPv4 alone") if family == socket.AF_INET else ""
        raise UsageError(
            tr("--for {far!r}: {reason}{only}", far=far, reason=reason, only=only),
            tr("give the name or the address of the host on which the client runs"),
        ) from None
    return [ipaddress.ip_address(str(address[0])) for _, _, _, _, address in found]


def _route(target: Address) -> tuple[str, bool] | None:
    """Our end of the way to the target, and whether the target is this very host; no packet is sent."""
    with socket.socket(socket.AF_INET6 if target.version == 6 else socket.AF_INET, socket.SOCK_DGRAM) as asker:
        try:
            asker.connect((str(target), 9))
        except OSError:
            return None
        ours = str(asker.getsockname()[0])
    return ours, ipaddress.ip_address(ours) == target


# The key


def _plain_key(host: Host, layout: Layout) -> str:
    if os.geteuid() != 0:
        raise Refused(tr("only root may have a key shown"), tr("run the command with sudo"))
    usable = (key for key in unit_keys(host, layout) if key.name != PROBE and key.role != "metrics")
    plain = next((key.plain for key in usable if key.plain and key.expiry is None), None)
    if plain is None:
        raise Refused(
            tr(
                "the keys of {service} are known by their digests alone, from which no key can be shown",
                service=layout.service,
            ),
            tr(
                "use the key that was printed when it was made, or make a new one: "
                "sudo vllm-install set-apikey --service {service}",
                service=layout.service,
            ),
        )
    return plain
