"""Certificates for tests, made by openssl: any name, any days, also days that are over."""

from __future__ import annotations

import subprocess
from pathlib import Path


def certificate(folder: Path, *names: str, days: int = 30, stem: str = "tls") -> tuple[Path, Path]:
    """Signed by itself; negative days end yesterday."""
    folder.mkdir(parents=True, exist_ok=True)
    made, key = folder / f"{stem}.pem", folder / f"{stem}.key"
    names = names or ("localhost",)
    written = ",".join(f"{'IP' if name[0].isdigit() else 'DNS'}:{name}" for name in names)
    period = ["-days", str(days)]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", *period,
         "-subj", f"/CN={names[0]}", "-addext", f"subjectAltName={written}", "-keyout", key, "-out", made],
        check=True, capture_output=True,
    )  # fmt: skip
    key.chmod(0o600)
    return made, key


def signed(folder: Path, by: tuple[Path, Path], name: str = "localhost") -> tuple[Path, Path]:
    """Signed by an authority that is a certificate with its key."""
    made, key = folder / "signed.pem", folder / "signed.key"
    asked = subprocess.run(
        ["openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-subj", f"/CN={name}", "-keyout", key],
        check=True, capture_output=True,
    ).stdout  # fmt: skip
    authority = ["-CA", by[0], "-CAkey", by[1], "-set_serial", "1", "-days", "30"]
    subprocess.run(["openssl", "x509", "-req", *authority, "-out", made], input=asked, check=True, capture_output=True)
    return made, key
