"""API keys: making them, judging them, and their form in ExecStart: [NAME[:ROLE]=](sha256:HEX|KEY)[@EXPIRY]."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass

from installer.errors import UsageError

DEFAULT = "default"
PROBE = "probe"
INFERENCE = "inference"
TO_BE_MADE = "MADE-BY-DEPLOY"

# The launcher reads the unit by the same form; a test holds the two together.
_FORM = re.compile(
    r"(?:(?P<name>[a-z0-9_-]+)(?::(?P<role>metrics|inference|admin))?=)?"
    r"(?:sha256:(?P<digest>[0-9a-fA-F]{64})|(?P<plain>(?!sha256:)[!-9;-?A-~]{16,}))"
    r"(?:@(?P<expiry>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ))?"
)


@dataclass(frozen=True)
class Key:
    """A key as the service knows it: by its digest. `plain` is set only where the unit holds it verbatim."""

    name: str
    digest: str
    role: str = INFERENCE
    expiry: str | None = None
    plain: str | None = None

    @property
    def argument(self) -> str:
        role = "" if self.role == INFERENCE else f":{self.role}"
        expiry = f"@{self.expiry}" if self.expiry else ""
        return f"{self.name}{role}={self.plain or 'sha256:' + self.digest}{expiry}"


def parse(argument: str) -> Key:
    match = _FORM.fullmatch(argument)
    if not match:
        raise UsageError(
            "an --api-key in the unit is neither [NAME[:ROLE]=]sha256:HEX[@EXPIRY] nor a key",
            "mend the ExecStart line, or let deploy render it anew",
        )
    plain = match["plain"]
    return Key(
        name=match["name"] or DEFAULT,
        digest=match["digest"].lower() if match["digest"] else digest(plain),
        role=match["role"] or INFERENCE,
        expiry=match["expiry"],
        plain=plain,
    )


def digest(plain: str) -> str:
    return hashlib.sha256(plain.encode()).hexdigest()


def generate(service: str) -> str:
    return f"sk-{service}-{secrets.token_urlsafe(32)}"


def check(plain: str) -> str:
    """Refuse what could be guessed from its digest, or could not travel in an HTTP header."""
    if not re.fullmatch(r"[!-9;-?A-~]+", plain):
        raise UsageError(
            "an API key consists of printable ASCII characters without spaces, ':' or '@'",
            "let vllm-install make one, or: openssl rand -base64 32",
        )
    if len(plain) > 512:
        raise UsageError(f"an API key has at most 512 characters, this one has {len(plain)}")
    if len(plain) < 20 or len(set(plain)) < 10:
        raise UsageError(
            "this API key is too weak: its digest is public on this host and could be guessed back",
            "use at least 20 characters of high variety, or let vllm-install make one",
        )
    return plain
