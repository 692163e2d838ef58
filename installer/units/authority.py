"""TLS=self: a certificate for the service, signed by an authority of this host's own, whose key never leaves it."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from installer.base.changes import Change
from installer.base.host import Host
from installer.base.language import english, tr
from installer.base.layout import Layout
from installer.base.report import Report
from installer.runtime import vllm_certificate
from installer.spec.settings import Settings
from installer.units.gateway import certificate_files, config_file

AUTHORITY = Path("/etc/vllm-install/ca")
CERTIFICATE, KEY = AUTHORITY / "ca.pem", AUTHORITY / "ca.key"
YEARS_OF_LINK = 50  # nobody but its own hosts trusts it
YEARS_OF_AUTHORITY, DAYS, RENEWED_BEFORE = 10, 397, 30
CURVE = ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
LOCAL = ("localhost", "127.0.0.1", "::1")
FAMILIES = (socket.AF_INET, socket.AF_INET6)
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?", re.ASCII)
EXTENSIONS = """\
basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature
extendedKeyUsage=serverAuth
subjectAltName={names}
"""


def due(settings: Settings, layout: Layout, host: Host) -> Iterator[Change]:
    """Nothing, as long as the certificate that is there serves and goes on doing so."""
    if settings.gateway_hosts and not host.exists(layout.group_key):
        yield MakeLinkKey(layout)
    if settings.tls == "self" and not settings.tls_cert and not _serves(settings, layout, host):
        yield IssueCertificate(layout, names(settings, host))


def names(settings: Settings, host: Host) -> tuple[str, ...]:
    """By which clients ask for the service: this host's name, and the addresses where it listens."""
    addresses = [settings.host]
    if settings.host in ("0.0.0.0", "::"):  # noqa: S104 it is compared
        cards = psutil.net_if_addrs().values()
        addresses = [each.address.partition("%")[0] for card in cards for each in card if each.family in FAMILIES]
    return tuple(dict.fromkeys((*LOCAL, own_name(host), *addresses)))


def certificate_names(settings: Settings, host: Host) -> tuple[str, ...]:
    """Of a user's own certificate, where we may read it; ours has every address."""
    if not settings.tls_cert:
        return ()
    shown = host.output(
        "openssl", "x509", "-in", str(host.at(Path(settings.tls_cert))), "-noout", "-ext", "subjectAltName"
    )
    return tuple(re.findall(r"(?:DNS|IP Address):([^,\s]+)", shown))


def own_name(host: Host) -> str:
    found = host.word(Path("/etc/hostname")) or os.uname().nodename
    return found if NAME.fullmatch(found) else LOCAL[0]


def _serves(settings: Settings, layout: Layout, host: Host) -> bool:
    files = certificate_files(settings, layout)
    assert files
    try:
        found = vllm_certificate.look(*(str(host.at(path)) for path in files))
    except vllm_certificate.Unfit:
        return False
    # Other addresses come and go with containers and networks.
    needed = (LOCAL[0], own_name(host))
    return found.days_left >= RENEWED_BEFORE and all(vllm_certificate.covers(found.names, each) for each in needed)


@dataclass(frozen=True)
class IssueCertificate:
    layout: Layout
    names: tuple[str, ...]

    def describe(self) -> str:
        return tr("make a certificate for TLS that names {names}", names=", ".join(self.names))

    def to_json(self) -> dict[str, object]:
        return {"kind": "certificate", "names": list(self.names)}

    def apply(self, host: Host, report: Report) -> None:
        """The key first and the certificate last: what was cut off before that is done again."""
        with host.lock(self.layout.shared_lock, f"vllm-install: {english(self.describe())}", report.waits):
            if not host.exists(CERTIFICATE):
                _make_authority(host)
        files = certificate_files(Settings(tls="self"), self.layout)
        assert files
        certificate, key = files
        request = certificate.with_suffix(".csr")
        host.write(key, host.run("openssl", "genpkey", *CURVE).stdout, 0o600)
        asked = host.run("openssl", "req", "-new", "-key", host.at(key), "-subj", f"/CN={self.layout.service}")
        host.write(request, asked.stdout)
        written = ",".join(f"{'IP' if _is_address(name) else 'DNS'}:{name}" for name in self.names)
        signed = host.run(
            "openssl", "x509", "-req", "-in", host.at(request), "-CA", host.at(CERTIFICATE), "-CAkey", host.at(KEY),
            "-set_serial", f"0x{os.urandom(16).hex()}", "-days", str(DAYS), "-sha256", "-extfile", "/dev/stdin",
            stdin=EXTENSIONS.format(names=written),
        )  # fmt: skip
        host.remove(request)
        host.write(certificate, signed.stdout + (host.read(CERTIFICATE) or ""))
        if host.exists(config_file(self.layout)):  # a gateway that runs presents it from now on
            host.systemctl("reload", self.layout.unit_name, check=False)


@dataclass(frozen=True)
class MakeLinkKey:
    """The gateways of several hosts know one another by having the same."""

    layout: Layout

    def describe(self) -> str:
        return tr("make the key by which the gateways of the hosts know one another")

    def to_json(self) -> dict[str, object]:
        return {"kind": "link-key"}

    def apply(self, host: Host, report: Report) -> None:
        host.write(self.layout.group_key, link_key(self.layout.service, host), 0o600)


def link_key(service: str, host: Host) -> str:
    """A private key, and the one certificate that its owners trust."""
    made = host.run(
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-sha256",
        "-days", str(365 * YEARS_OF_LINK), "-subj", f"/CN={service}", "-keyout", "-", "-out", "-",
    )  # fmt: skip
    return made.stdout


def _make_authority(host: Host) -> None:
    host.make_dir(AUTHORITY)
    host.write(KEY, host.run("openssl", "genpkey", *CURVE).stdout, 0o600)
    made = host.run(
        "openssl", "req", "-x509", "-new", "-key", host.at(KEY), "-days", str(365 * YEARS_OF_AUTHORITY), "-sha256",
        "-subj", f"/CN=vllm-install on {own_name(host)[:40]}", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
    )  # fmt: skip
    host.write(CERTIFICATE, made.stdout)


def _is_address(name: str) -> bool:
    return ":" in name or name.replace(".", "").isdigit()
