"""What a gateway needs of a host, judged before anything is changed: HAProxy, a certificate that serves, secrets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from installer.base.host import Host
from installer.checks import preflight
from installer.checks.gateway import check_gateway, look
from installer.runtime import vllm_certificate
from installer.spec.facts import Gateway, Process
from installer.spec.settings import Settings
from installer.spec.values import AUTO
from tests.checks.test_preflight import HEALTHY, LAYOUT
from tests.kit.certificates import certificate

SOUND = Gateway(haproxy=(2, 6), names=("gpu1.example",), days_left=60)
HOSTS = ("10.0.0.1", "10.0.0.2")
SEVERAL = Settings(gateway_hosts=HOSTS)
FILES = Settings(tls_cert="/c.pem", tls_key="/k.pem")


def said(settings: Settings, found: Gateway | None, distribution: str = "debian") -> list[str]:
    facts = replace(HEALTHY, gateway=found, distribution=(distribution,))
    return [str(problem) for problem in preflight.problems(settings, facts, LAYOUT)]


def test_a_sound_one_is_no_problem() -> None:
    assert said(FILES, SOUND) == said(Settings(), None) == []
    ours = replace(SOUND, addresses=HOSTS[:1], link_holder=Process(7, "haproxy", LAYOUT.unit_name))
    assert said(SEVERAL, ours) == []


@pytest.mark.parametrize(
    ("distribution", "remedy"),
    [
        ("debian", "sudo apt-get install -y haproxy"), ("fedora", "sudo dnf install -y haproxy"),
        ("arch", "sudo pacman -S --needed haproxy"),
        ("gentoo", "install haproxy with this distribution's package manager"),
    ],
)  # fmt: skip
def test_no_haproxy_is_said_with_the_command_that_installs_it(distribution: str, remedy: str) -> None:
    (told,) = said(Settings(replicas=2), replace(SOUND, haproxy=None), distribution)
    assert (
        told == f"no HAProxy: it is the gateway before several replicas or hosts, for TLS and for a fallback; {remedy}"
    )


@pytest.mark.parametrize(
    ("settings", "found", "words", "fatal"),
    [
        (FILES, replace(SOUND, haproxy=(2, 3)), "HAProxy 2.3 is too old: the gateway needs version 2.4", True),
        (Settings(tls="self"), replace(SOUND, openssl=False), "no openssl", True),
        (FILES, replace(SOUND, unfit="it has expired"), "the certificate /c.pem cannot serve: it has expired", True),
        (FILES, replace(SOUND, days_left=13), "the certificate /c.pem expires in 13 days", False),
        (FILES, replace(SOUND, is_here=False), "the certificate /c.pem is for gpu1.example", False),
        (FILES, replace(SOUND, exposed=("/k.pem: others than root may read it",)), "root's alone: /k.pem", True),
        (Settings(tls_key="/k.pem"), None, "TLS_CERT and TLS_KEY belong together", True),
        (Settings(tls_cert="/c.pem"), SOUND, "TLS_CERT and TLS_KEY belong together", True),
        (SEVERAL, replace(SOUND, openssl=False, addresses=HOSTS[:1]), "and that of the hosts' gateways", True),
        (SEVERAL, SOUND, "no single place in GATEWAY_HOSTS: of 10.0.0.1, 10.0.0.2 it has none", True),
        (SEVERAL, replace(SOUND, addresses=HOSTS), "it has 10.0.0.1, 10.0.0.2", True),
        (Settings(gateway_hosts=AUTO), SOUND, "GATEWAY_HOSTS=auto is for several hosts", True),
        (replace(SEVERAL, group_hosts=HOSTS, group_key_file="/k"), replace(SOUND, addresses=HOSTS[:1]),
         "GATEWAY_HOSTS and GROUP_HOSTS exclude each other", True),
        (SEVERAL, replace(SOUND, addresses=HOSTS[:1], link_holder=Process(7, "other")), "port 29500 is taken", True),
        (Settings(fallback_url="https://a.example/v1"), SOUND,
         "prompts may leave this host: while no replica is up, they are sent to https://a.example/v1", False),
    ],
)  # fmt: skip
def test_each_fault_is_told(settings: Settings, found: Gateway | None, words: str, fatal: bool) -> None:
    (problem,) = check_gateway(settings, replace(HEALTHY, gateway=found))
    assert words in str(problem)
    assert problem.fatal is fatal


def pair(host: Host, *names: str, days: int = 30) -> Settings:
    certificate(host.at(Path("/etc/tls")), *names, days=days)
    return Settings(tls_cert="/etc/tls/tls.pem", tls_key="/etc/tls/tls.key")


def test_a_certificate_is_looked_at_as_a_client_would(host: Host) -> None:
    host.write(Path("/etc/hostname"), "gpu1\n")
    found = look(host, pair(host, "gpu1.example", "*.llm.example"))
    assert (found.unfit, found.names, found.is_here) == ("", ("gpu1.example", "*.llm.example"), True)
    assert found.days_left in (29, 30)
    assert not look(host, pair(host, "bank.invalid")).is_here
    assert look(host, pair(host, "localhost.invalid", "127.0.0.1")).names == ("localhost.invalid", "127.0.0.1")


@pytest.mark.parametrize("fault", ["other key", "garbage", "missing", "encrypted", "swapped"])
def test_what_cannot_serve_is_said(host: Host, fault: str) -> None:
    settings = pair(host)
    made, key = host.at(Path("/etc/tls/tls.pem")), host.at(Path("/etc/tls/tls.key"))
    if fault == "other key":
        certificate(made.parent, stem="x")[1].replace(key)
    elif fault == "garbage":
        made.write_bytes(b"\x1b[2J\0garbage")
    elif fault == "missing":
        made.unlink()
    elif fault == "encrypted":
        host.run("openssl", "ec", "-in", key, "-out", key, "-aes128", "-passout", "pass:secret")
    else:
        settings = Settings(tls_cert=settings.tls_key, tls_key=settings.tls_cert)
    found = look(host, settings).unfit
    expected = {
        "other key": "the key belongs to another certificate",
        "missing": "No such file",
        "encrypted": "encrypted",
    }
    assert expected.get(fault, "cannot be read") in found
    assert found.isprintable()


def test_one_whose_time_is_over_or_has_not_come(host: Host) -> None:
    settings = pair(host)
    made, key = host.at(Path("/etc/tls/tls.pem")), host.at(Path("/etc/tls/tls.key"))
    for dates, why in ((("20010101000000Z", "20020101000000Z"), "it has expired"),
                       (("29990101000000Z", "29990201000000Z"), "it is not valid yet: look at the clock")):  # fmt: skip
        sign(host, made, key, *dates)
        assert look(host, settings).unfit == why


def sign(host: Host, made: Path, key: Path, begins: str, ends: str) -> None:
    """By `openssl ca`, the one command that takes dates in every version."""
    home = made.parent / "authority"
    home.mkdir(exist_ok=True)
    (home / "index").write_text("")
    (home / "serial").write_text("01")
    (home / "conf").write_text(
        f"[ca]\ndefault_ca=x\n[x]\ndatabase={home}/index\nserial={home}/serial\nnew_certs_dir={home}\n"
        "default_md=sha256\npolicy=p\nunique_subject=no\n[p]\ncommonName=supplied\n"
    )
    host.run("openssl", "req", "-new", "-key", key, "-subj", "/CN=localhost", "-out", home / "csr")
    host.run(
        "openssl", "ca", "-batch", "-config", home / "conf", "-selfsign", "-keyfile", key, "-in", home / "csr",
        "-startdate", begins, "-enddate", ends, "-out", made, "-notext",
    )  # fmt: skip


def test_secrets_are_root_s_alone(host: Host) -> None:
    settings = replace(pair(host), fallback_url="https://a.example/v1", fallback_key_file="/etc/other")
    host.write(Path("/etc/other"), "sk-x", 0o640)
    host.at(Path("/etc/tls/tls.key")).chmod(0o644)
    exposed = look(host, settings).exposed
    assert "/etc/tls/tls.key: others than root may read it" in exposed
    assert "/etc/other: others than root may read it" in exposed
    host.at(Path("/etc/tls/tls.pem")).chmod(0o644)
    assert not [why for why in exposed if why.startswith("/etc/tls/tls.pem")]
    host.at(Path("/etc/tls")).chmod(0o775)
    exposed = look(host, settings).exposed
    for name in ("tls.pem", "tls.key"):
        assert f"/etc/tls/{name}: others than root can change /etc/tls" in exposed
    host.remove(Path("/etc/other"))
    assert "/etc/other: No such file or directory" in look(host, settings).exposed


@pytest.mark.parametrize(
    ("names", "wanted", "is_covered"),
    [
        (("a.example",), "A.example", True), (("*.example.com",), "x.example.com", True),
        (("*.example.com",), "example.com", False), (("*.example.com",), "a.b.example.com", False),
        (("127.0.0.1",), "127.0.0.1", True), ((), "x", False), (("*",), "x", False),
    ],
)  # fmt: skip
def test_a_name_is_covered_as_clients_see_it(names: tuple[str, ...], wanted: str, is_covered: bool) -> None:
    assert vllm_certificate.covers(names, wanted) is is_covered
