"""Whether a certificate serves: its key fits, it is valid today, and it names whom clients will ask for.

Found out as a client would: by a handshake with itself, in memory. Stdlib only, because the gateway runs it too.
"""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Callable
from typing import NamedTuple

PARTIAL_CHAIN = 0x80000  # trust the certificate itself, whoever signed it
MESSAGES = 8  # of a handshake, at most
EXPIRED, NOT_YET, OTHER_NAME = 10, 9, 62  # OpenSSL's own numbers


class Unfit(Exception):
    """The certificate cannot serve; says why."""


class Certificate(NamedTuple):
    names: tuple[str, ...]  # host names and addresses
    expires: float  # seconds since 1970

    @property
    def days_left(self) -> int:
        return int((self.expires - time.time()) // 86400)


def look(certificate: str, key: str) -> Certificate:
    """Of files as they are; raises Unfit where a server cannot present them today."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _explained("it or its key cannot be read", lambda: server.load_cert_chain(certificate, key, _no_password))
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags = ssl.VerifyFlags(client.verify_flags | PARTIAL_CHAIN)
    _explained("it cannot be read", lambda: client.load_verify_locations(certificate))
    shown = _handshake(server, client)
    names = tuple(str(name) for kind, name in shown.get("subjectAltName", ()) if kind in ("DNS", "IP Address"))
    return Certificate(names, ssl.cert_time_to_seconds(str(shown["notAfter"])))


def covers(names: tuple[str, ...], wanted: str) -> bool:
    """Whether a client that asks for this name or address is content."""
    first, _, rest = wanted.lower().partition(".")
    return any(name.lower() in (wanted.lower(), f"*.{rest}" if rest and first else None) for name in names)


def _handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> dict[str, tuple[tuple[str, str], ...]]:
    """What a client learns of the server, none of whose bytes leave this process."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True))
    try:
        for _ in range(MESSAGES):
            for end in ends:
                with contextlib.suppress(ssl.SSLWantReadError):
                    end.do_handshake()
    except ssl.SSLCertVerificationError as error:
        if error.verify_code == EXPIRED:
            raise Unfit("it has expired") from None
        if error.verify_code == NOT_YET:
            raise Unfit("it is not valid yet: look at the clock") from None
        raise Unfit(error.verify_message) from None
    except ssl.SSLError as error:
        raise Unfit(error.reason or str(error)) from None
    return ends[0].getpeercert() or {}  # type: ignore[return-value]


def _explained(otherwise: str, load: Callable[[], None]) -> None:
    try:
        load()
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise Unfit("the key belongs to another certificate") from None
        raise Unfit(f"{otherwise} ({error.reason or 'no PEM'})") from None
    except OSError as error:
        raise Unfit(f"{otherwise}: {error.strerror}") from None


def _no_password() -> str:
    raise Unfit("the key is encrypted, and nobody is there to type its password")
