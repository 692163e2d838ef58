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
