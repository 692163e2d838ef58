"""TLS at the gateway: clients by their own libraries, a certificate renewed while they talk, one that is garbage."""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from installer.look.client import Client
from installer.look.formats import FORMATS
from installer.runtime.vllm_haproxy import SOCKET, worker
from installer.spec.settings import Settings
from installer.units.api import Api, NoAnswer
from tests.kit import openai_client
from tests.kit.certificates import certificate
from tests.kit.gateway import HAPROXY, Gateway, gateway
from tests.kit.replica import replicas_on
from tests.runtime.test_gateway import are_up, eventually

pytestmark = pytest.mark.skipif(HAPROXY is None, reason="no haproxy here")
SETTINGS = Settings(service="q", tls_cert="/c", tls_key="/k")


@pytest.fixture
def made() -> Iterator[Gateway]:
    with replicas_on(2) as replicas, gateway(SETTINGS, [each.port for each in replicas], starts=False) as running:
        pair = certificate(running.home / "first")
        shutil.copy(pair[0], running.credentials / "tls.pem")
        shutil.copy(pair[1], running.credentials / "tls.pem.key")
        running.start()
        eventually(lambda: are_up(running, 1, 2))
        yield running


def trusting(path: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(path))


def shown(made: Gateway) -> str:
    return ssl.get_server_certificate(("127.0.0.1", made.port)).strip()


def test_curl_speaks_http_2_and_1(made: Gateway) -> None:
    for flag, version in (("--http2", "2"), ("--http1.1", "1.1")):
        done = subprocess.run(
            ["curl", "-sS", flag, "--cacert", made.home / "first/tls.pem", "-w", "\n%{http_version} %{http_code}", "-d",
             '{"prompt": "x"}', f"https://localhost:{made.port}/v1/completions"], capture_output=True, text=True,
        )  # fmt: skip
        assert done.stdout.splitlines()[-1] == f"{version} 200", done.stderr


def test_our_own_client_believes_this_certificate_and_no_other(made: Gateway) -> None:
    text = (made.home / "first/tls.pem").read_text()
    answer = Api("127.0.0.1", made.port, None, 60, certificate=text).ask("POST", "/v1/completions", {"prompt": "x"})
    assert (answer.status, answer.json()["choices"] != []) == (200, True)
    other = certificate(made.home / "other")[0].read_text()
    for wrong in (other, "", "garbage"):
        with pytest.raises(NoAnswer):
            Api("127.0.0.1", made.port, "sk-secret-key", 60, certificate=wrong).ask("GET", "/v1/models")
    with pytest.raises(NoAnswer):
        Api("127.0.0.1", made.port, None, 60).ask("GET", "/v1/models")


def test_the_openai_package_believes_whom_client_config_names(made: Gateway, tmp_path: Path) -> None:
    client = Client(f"https://localhost:{made.port}/v1", "m", "sk-1", str(made.home / "first/tls.pem"))
    assert openai_client.ask(FORMATS["env"](client), tmp_path) == "x\n"
    with pytest.raises(subprocess.CalledProcessError):
        openai_client.ask(FORMATS["env"](replace(client, authority=None)), tmp_path)


def test_an_engine_learns_that_its_client_came_over_tls() -> None:
    with replicas_on(1) as replicas, gateway(SETTINGS, [replicas[0].port], starts=False) as running:
        pair = certificate(running.home / "first")
        shutil.copy(pair[0], running.credentials / "tls.pem")
        shutil.copy(pair[1], running.credentials / "tls.pem.key")
        running.start()
        eventually(lambda: are_up(running, 1))
        told = {"X-Forwarded-Proto": "http", "X-Forwarded-For": "1.2.3.4"}
        assert running.ask(tls=trusting(pair[0]), headers=told).status == 200
        head = replicas[0].asked[0].lower()
        assert re.findall(rb"x-forwarded-(\w+): (\S+)", head) == [(b"for", b"127.0.0.1"), (b"proto", b"https")]


def test_old_versions_of_tls_are_refused(made: Gateway) -> None:
    context = trusting(made.home / "first/tls.pem")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises((ssl.SSLError, ConnectionError)), socket.create_connection(("127.0.0.1", made.port)) as plain:
        context.wrap_socket(plain, server_hostname="localhost")


def test_a_renewed_certificate_is_shown_and_no_connection_is_touched(made: Gateway) -> None:
    first, second = made.home / "first/tls.pem", certificate(made.home / "second")
    context = trusting(first)
    with context.wrap_socket(socket.create_connection(("127.0.0.1", made.port)), server_hostname="localhost") as kept:
        done = made.reload(second)
        assert done.returncode == 0, done.stderr
        assert shown(made) == second[0].read_text().strip()
        kept.sendall(b"GET /v1/models HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        assert kept.recv(12) == b"HTTP/1.1 200"
    assert (made.run_dir / "tls.pem").stat().st_mode & 0o077 == 0


def test_a_worker_that_starts_later_has_the_renewed_one(made: Gateway) -> None:
    second = certificate(made.home / "second")
    assert made.reload(second).returncode == 0
    before = made.children()
    subprocess.run(["kill", "-KILL", *map(str, before)], check=True)
    eventually(lambda: made.children() not in ([], before) and worker(str(made.run_dir / SOCKET)))
    assert shown(made) == second[0].read_text().strip()


@pytest.mark.parametrize("fault", ["garbage", "other key", "missing", "empty"])
def test_one_that_cannot_serve_is_refused_and_the_old_one_stays(made: Gateway, fault: str) -> None:
    new, key = certificate(made.home / "second")
    if fault == "garbage":
        new.write_bytes(b"\x1b[2Jgarbage\0")
    elif fault == "empty":
        new.write_bytes(b"")
    elif fault == "missing":
        new.unlink()
    else:
        key = certificate(made.home / "third")[1]
    made.configure([1, 2])
    done = made.reload((new, key))
    assert done.returncode == 1
    assert "is unfit: " in done.stderr
    assert "\x1b" not in done.stderr
    assert shown(made) == (made.home / "first/tls.pem").read_text().strip()
    assert made.ask(tls=trusting(made.home / "first/tls.pem")).status == 200  # nor was the configuration taken


def test_root_follows_no_link_of_the_gateway_s_user(made: Gateway) -> None:
    """What it could put in the new file's place while it is handed in."""
    prey = made.home / "prey"
    prey.write_text("untouched")
    (made.run_dir / "tls.pem.new").symlink_to(prey)
    assert made.reload(certificate(made.home / "second")).returncode == 0
    assert prey.read_text() == "untouched"
    assert not (made.run_dir / "tls.pem").is_symlink()
