"""Who signed a text: ssh-keygen's signatures, because every host has it and every administrator has keys for it."""

from __future__ import annotations

from pathlib import Path

from installer.base.errors import Refused, UsageError
from installer.base.host import Host
from installer.base.language import tr


def signer_of(text: str, signature: str, signers: Path, namespace: str, host: Host) -> str | None:
    """The one of the signers that are allowed who signed it, for this purpose; None where none of them did."""
    if not signers.is_file():
        raise UsageError(
            tr("there is no file {signers}", signers=signers),
            tr("it holds a line NAME KEY for each signer (man ssh-keygen)"),
        )
    need_ssh_keygen(host)
    with host.scratch({"signature": signature}) as scratch:
        allowed = ("-f", signers.resolve(), "-n", namespace, "-s", scratch / "signature")
        found = host.run("ssh-keygen", "-Y", "find-principals", *allowed, check=False)
        for name in found.stdout.splitlines():
            verify = ("ssh-keygen", "-Y", "verify", *allowed, "-I", name)
            if host.run(*verify, stdin=text, check=False).returncode == 0:
                return name
    return None


def need_ssh_keygen(host: Host) -> None:
    if host.which("ssh-keygen") is None:
        raise Refused(
            tr("there is no ssh-keygen, which makes and checks signatures"),
            tr("install OpenSSH's client, or use a digest"),
        )
