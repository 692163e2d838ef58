"""Who made a bundle: its manifest is signed."""

from __future__ import annotations

import re
from pathlib import Path

from installer.airgap.bundle_file import Bundle
from installer.base.errors import CommandFailed, Exit, InstallError, UsageError
from installer.base.host import Host
from installer.base.language import tr
from installer.base.signature import need_ssh_keygen, signer_of

NAMESPACE = "vllm-install-bundle"  # so that a signature for something else is none for a bundle


def sign(text: str, key: Path, host: Host) -> str:
    need_ssh_keygen(host)
    with host.scratch({"manifest.json": text}) as scratch:
        manifest = scratch / "manifest.json"
        try:
            host.run("ssh-keygen", "-Y", "sign", "-f", key, "-n", NAMESPACE, manifest)
        except CommandFailed as error:
            raise UsageError(
                tr("{key} cannot sign: {reason}", key=key, reason=error.output.strip()),
                tr(
                    "name an SSH private key (ssh-keygen -t ed25519 makes one), or a public key whose private half "
                    "is in the SSH agent"
                ),
            ) from None
        return manifest.with_name("manifest.json.sig").read_text()


def check_signature(bundle: Bundle, digest: str | None, signers: Path | None, host: Host) -> str | None:
    """Refuse a bundle that is not the one meant; returns who signed it, where that was asked for."""
    if digest is not None:
        if not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
            raise UsageError(
                tr("{digest!r} is no SHA-256 digest", digest=digest), tr("bundle create prints it, and bundle show")
            )
        if digest.lower() != bundle.digest:
            raise _not_meant(
                tr(
                    "{path} is another bundle: the digest of its manifest is {digest}",
                    path=bundle.path,
                    digest=bundle.digest,
                )
            )
    return _check_signature(bundle, signers, host) if signers else None


def _check_signature(bundle: Bundle, signers: Path, host: Host) -> str:
    if bundle.signature is None:
        raise _not_meant(tr("{path} is not signed", path=bundle.path))
    signer = signer_of(bundle.text.decode(), bundle.signature, signers, NAMESPACE, host)
    if signer is None:
        raise _not_meant(
            tr(
                "{path} is signed by nobody that {signers} names, or was changed since",
                path=bundle.path, signers=signers,
            )
        )  # fmt: skip
    return signer


def _not_meant(why: str) -> InstallError:
    return InstallError(why, tr("get the bundle again from its maker, and ask for its digest"), Exit.MODEL)
