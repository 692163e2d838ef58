"""The way to the hub: certificates, proxies, and who gets to see the token."""

from __future__ import annotations

import select
import socket
import socketserver
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from installer.base.host import Host
from tests.kit.hub import Hub
from tests.kit.weights import REPO, TOKEN, checkpoint, child


@pytest.fixture
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for both of the hub's addresses, its key behind it."""
    place = tmp_path_factory.mktemp("tls")
    names = "subjectAltName=IP:127.0.0.1,IP:127.0.0.2"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=hub",
         "-addext", names, "-keyout", place / "key", "-out", place / "certificate"],
        check=True, capture_output=True,
    )  # fmt: skip
    return place / "certificate"


@pytest.fixture
def server(plain_network: None, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that speaks TLS and wants a token."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key"))
    with Hub(tls=context) as running:
        running.add(REPO, checkpoint(size=3_000_000))
        running.repos[REPO].token = TOKEN
        yield running


class Proxy(socketserver.ThreadingTCPServer):
    """Opens tunnels, and notes what it was told before each."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Tunnel)
        self.asked: list[str] = []

    @property
    def port(self) -> int:
        port: int = self.server_address[1]
        return port


class Tunnel(socketserver.BaseRequestHandler):
    server: Proxy
    request: socket.socket

    def handle(self) -> None:
        asked = b""
        while not asked.endswith(b"\r\n\r\n"):
            asked += self.request.recv(1)
        self.server.asked.append(asked.decode())
        host, _, port = asked.split()[1].decode().partition(":")
        with socket.create_connection((host, int(port))) as there:
            self.request.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            ends = {self.request: there, there: self.request}
            while True:
                for end in select.select(list(ends), [], [])[0]:
                    data = end.recv(65536)
                    if not data:
                        return
                    ends[end].sendall(data)


def pulled(server: Hub, host: Host) -> str:
    """What a pull in a process of its own says on stderr; empty when all is well."""
    with child(server, host) as process:
        _, said = process.communicate()
        return "" if process.returncode == 0 else said


def test_over_tls_the_token_goes_to_the_hub_alone(
    server: Hub, host: Host, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert pulled(server, host) == ""
    assert {r.server: "authorization" in r.headers for r in server.requests} == {"hub": True, "cdn": False}


def test_a_certificate_that_nobody_vouches_for_is_refused(server: Hub, host: Host) -> None:
    assert "CERTIFICATE_VERIFY_FAILED" in pulled(server, host)
    assert server.requests == []


def test_a_proxy_sees_its_own_password_and_nothing_else(
    server: Hub, host: Host, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with Proxy() as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:%70ass@127.0.0.1:{proxy.port}")
        assert pulled(server, host) == ""
        proxy.shutdown()
    assert {line.split()[1].rpartition(":")[0] for line in proxy.asked} == {"127.0.0.1", "127.0.0.2"}
    assert all("Basic bWU6cGFzcw==" in line and TOKEN not in line for line in proxy.asked)


def test_without_proxy_for_an_address_it_is_reached_directly(
    server: Hub, host: Host, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,127.0.0.2")
    assert pulled(server, host) == ""
