"""The part of preflight that is about the gateway: HAProxy, the certificate, and the endpoint that stands in for it."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import Layout
from installer.checks.packages import install_command
from installer.checks.ports import ANY
from installer.checks.secret_files import exposed
from installer.runtime import vllm_certificate
from installer.spec.facts import Facts, Gateway
from installer.spec.problem import Problem
from installer.spec.settings import Settings
from installer.spec.values import AUTO
from installer.units.authority import names, own_name
from installer.units.processes import listener

OLDEST = (2, 4)  # reads JSON, answers in words of ours, and lets a certificate be replaced
SOON = 14  # days


def look(host: Host, settings: Settings) -> Gateway:
    version = re.search(r"version (\d+)\.(\d+)", host.output("haproxy", "-v"))
    found = Gateway(
        haproxy=(int(version[1]), int(version[2])) if version else None,
        openssl=(settings.tls != "self" and not settings.gateway_hosts) or host.which("openssl") is not None,
        addresses=tuple(each for each in settings.gateway_hosts if each in names(settings, host)),
        link_holder=listener(host, ANY, settings.group_port) if settings.gateway_hosts else None,
        exposed=tuple(_exposed(host, settings)),
    )
    if not (settings.tls_cert and settings.tls_key):
        return found
    return _with_certificate(found, host, settings, settings.tls_cert, settings.tls_key)


def _with_certificate(found: Gateway, host: Host, settings: Settings, certificate: str, key: str) -> Gateway:
    try:
        seen = vllm_certificate.look(str(host.at(Path(certificate))), str(host.at(Path(key))))
    except vllm_certificate.Unfit as unfit:
        return replace(found, unfit=str(unfit))
    here = any(vllm_certificate.covers(seen.names, name) for name in names(settings, host)[3:])
    is_here = here or any(_leads_here(name, settings, host) for name in seen.names)
    return replace(found, names=seen.names, days_left=seen.days_left, is_here=is_here)


def _leads_here(name: str, settings: Settings, host: Host) -> bool:
    if name.partition(".")[0] == own_name(host).partition(".")[0]:
        return True
    with contextlib.suppress(OSError, UnicodeError):
        return any(found[4][0] in names(settings, host) for found in socket.getaddrinfo(name, None))
    return False


def _exposed(host: Host, settings: Settings) -> Iterator[str]:
    files = ((settings.tls_cert, False), (settings.tls_key, True), (settings.fallback_key_file, True))
    for path, is_secret in files:
        if path and (why := exposed(host, path, is_secret=is_secret)):
            yield why


def check_gateway(settings: Settings, facts: Facts) -> Iterator[Problem]:
    if bool(settings.tls_cert) != bool(settings.tls_key):
        yield Problem(
            tr("TLS_CERT and TLS_KEY belong together"),
            tr("a server needs both the certificate and its private key"),
            tr("set both, or neither of them"),
            id="tls",
        )
    if facts.gateway is None:
        return
    yield from _check_programs(facts, facts.gateway)
    yield from _check_certificate(settings, facts.gateway)
    yield from _check_fallback(settings)
    yield from _check_others(settings, facts.gateway)


def _check_programs(facts: Facts, found: Gateway) -> Iterator[Problem]:
    reason = tr("it is the gateway before several replicas or hosts, for TLS and for a fallback")
    if found.haproxy is None:
        yield Problem(tr("no HAProxy"), reason, install_command(facts, "haproxy"), id="haproxy-missing")
    elif found.haproxy < OLDEST:
        shown, oldest = (".".join(map(str, version)) for version in (found.haproxy, OLDEST))
        yield Problem(
            tr("HAProxy {version} is too old", version=shown),
            tr("the gateway needs version {needed}", needed=oldest),
            tr("upgrade the distribution, or install a newer HAProxy"),
            id="haproxy-missing",
        )
    if not found.openssl:
        yield Problem(
            tr("no openssl"),
            tr("it makes the certificate of TLS=self, and that of the hosts' gateways"),
            install_command(facts, "openssl"),
            id="tls",
        )


def _check_certificate(settings: Settings, found: Gateway) -> Iterator[Problem]:
    for why in found.exposed:
        yield Problem(
            tr("a file for the gateway is not there, or not root's alone"),
            why,
            tr("keep it where only root can write: chown root:root, chmod 600; the gateway gets it from systemd"),
            id="tls",
        )
    name = settings.tls_cert
    if found.unfit:
        remedy = tr("renew it, or name another: TLS_CERT and TLS_KEY")
        yield Problem(tr("the certificate {path} cannot serve", path=name), tr(found.unfit), remedy, id="tls")
    elif name and settings.tls_key and found.days_left < SOON:
        yield Problem(
            tr("the certificate {path} expires in {days} days", path=name, days=found.days_left),
            tr("clients refuse one that has expired"),
            tr("renew it, and let the gateway read it: systemctl reload NAME"),
            fatal=False,
            id="tls",
        )
    if not found.is_here:
        yield Problem(
            tr("the certificate {path} is for {names}", path=name, names=", ".join(found.names) or tr("nobody")),
            tr("none of these names leads to this host as it sees itself"),
            tr("let clients use one of them, or take the certificate of this host"),
            fatal=False,
            id="tls",
        )


def _check_fallback(settings: Settings) -> Iterator[Problem]:
    if settings.fallback_url:
        yield Problem(
            tr("prompts may leave this host"),
            tr("while no replica is up, they are sent to {url}", url=settings.fallback_url),
            tr("to keep them here: vllm-install set FALLBACK_URL= --service {service}", service=settings.service),
            fatal=False,
            id="fallback",
        )


def _check_others(settings: Settings, found: Gateway) -> Iterator[Problem]:
    if not settings.gateway_hosts:
        return
    remedy = tr("from one of them: vllm-install deploy --hosts gpu1,gpu2 --gateway-hosts auto")
    if settings.gateway_hosts == AUTO:
        why = tr("which addresses the others have only a command for all of them finds out")
        yield Problem(tr("GATEWAY_HOSTS=auto is for several hosts"), why, remedy, id="gateway-hosts")
    elif len(found.addresses) != 1:
        why = tr(
            "of {hosts} it has {ours}",
            hosts=", ".join(settings.gateway_hosts), ours=", ".join(found.addresses) or tr("none"),
        )  # fmt: skip
        yield Problem(tr("this host has no single place in GATEWAY_HOSTS"), why, remedy, id="gateway-hosts")
    if settings.group_hosts:
        yield Problem(
            tr("GATEWAY_HOSTS and GROUP_HOSTS exclude each other"),
            tr("hosts either answer for one another, or serve one model together"),
            tr("leave one of them out"),
            id="gateway-hosts",
        )
    holder = found.link_holder
    if holder and not Layout(settings.service).has_unit(holder.unit or ""):
        yield Problem(
            tr("port {port} is taken", port=settings.group_port),
            tr("{process} listens there, where the other hosts' gateways are to come", process=holder),
            tr("choose another one with --group-port"),
            id="gateway-hosts",
        )
