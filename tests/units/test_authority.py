"""TLS=self: a certificate that clients believe who know this authority, renewed in time, its keys for root alone."""

from __future__ import annotations

import contextlib
import dataclasses
import ssl
import stat
import subprocess
from pathlib import Path

import pytest

from installer.base.host import Host
from installer.base.layout import Layout
from installer.base.report import Report
from installer.runtime import vllm_certificate
from installer.spec.settings import Settings
from installer.units import authority
from installer.units.authority import CERTIFICATE, KEY, IssueCertificate, due, names
from installer.units.gateway import certificate_files, config_file
from tests.kit.certificates import certificate

LAYOUT = Layout("q")
SELF = Settings(service="q", tls="self", host="10.0.0.7")


@pytest.fixture
def named(host: Host, monkeypatch: pytest.MonkeyPatch) -> Host:
    host.write(Path("/etc/hostname"), "gpu1.example\n")
    host.make_dir(LAYOUT.state_dir)
    monkeypatch.setattr(Host, "lock", lambda *_: contextlib.nullcontext())
    return host


def issue(host: Host, settings: Settings = SELF) -> tuple[Path, Path]:
    (change,) = due(settings, LAYOUT, host)
    change.apply(host, Report())
    files = certificate_files(settings, LAYOUT)
    assert files
    return host.at(files[0]), host.at(files[1])


def test_it_names_this_host_and_is_believed_by_who_knows_its_authority(named: Host) -> None:
    made, key = issue(named)
    found = vllm_certificate.look(str(made), str(key))
    assert set(found.names) == {"localhost", "127.0.0.1", "0:0:0:0:0:0:0:1", "gpu1.example", "10.0.0.7"}
    assert 390 < found.days_left < 400
    done = subprocess.run(
        ["openssl", "verify", "-purpose", "sslserver", "-CAfile", named.at(CERTIFICATE), made], capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert ssl.create_default_context(cafile=str(named.at(CERTIFICATE))).cert_store_stats()["x509_ca"] == 1


def test_addresses_stand_in_it_as_addresses_and_names_as_names(named: Host) -> None:
    """A client that asks for an address believes no name that looks like one."""
    made, _ = issue(named, dataclasses.replace(SELF, host="fd00::7"))
    command = ("openssl", "x509", "-in", str(made), "-noout", "-ext", "subjectAltName")
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[1].strip().split(", ") == [
        "DNS:localhost", "IP Address:127.0.0.1", "IP Address:0:0:0:0:0:0:0:1", "DNS:gpu1.example",
        "IP Address:FD00:0:0:0:0:0:0:7",
    ]  # fmt: skip


def test_keys_are_for_root_alone_and_certificates_for_all(named: Host) -> None:
    made, key = issue(named)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (named.at(KEY), key)] == [0o600, 0o600]
    assert [stat.S_IMODE(path.stat().st_mode) for path in (named.at(CERTIFICATE), made)] == [0o644, 0o644]
    assert not list(made.parent.glob("*.csr"))


def test_one_that_serves_is_kept_and_another_service_has_the_same_authority(named: Host) -> None:
    issue(named)
    assert list(due(SELF, LAYOUT, named)) == []
    before = named.read(CERTIFICATE)
    (other,) = due(SELF, Layout("other"), named)
    named.make_dir(Layout("other").state_dir)
    other.apply(named, Report())
    assert named.read(CERTIFICATE) == before


def test_who_waits_for_it_reads_what_is_being_made(named: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[str] = []

    def lock(_: Host, path: Path, command: str, busy: object) -> contextlib.AbstractContextManager[None]:
        held.append(command)
        return contextlib.nullcontext()

    monkeypatch.setattr(Host, "lock", lock)
    IssueCertificate(LAYOUT, ("localhost",)).apply(named, Report())
    assert held == ["vllm-install: make a certificate for TLS that names localhost"]


def test_a_gateway_that_runs_is_told_of_a_new_one(named: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, ...]] = []
    monkeypatch.setattr(Host, "systemctl", lambda _, *words, check=True: told.append((*words, str(check))))
    issue(named)
    assert told == [], "there is none yet"
    named.write(Path("/etc/hostname"), "gpu2.example\n")
    named.write(config_file(LAYOUT), "")
    issue(named)
    assert told == [("reload", "q.service", "False")], "of one that does not run that fails, and is no fault"


@pytest.mark.parametrize("fault", ["expires", "garbage", "another host", "another key"])
def test_one_that_serves_no_longer_is_made_anew(named: Host, fault: str) -> None:
    made, key = issue(named)
    if fault == "expires":
        certificate(made.parent, "localhost", "gpu1.example", days=29)
    elif fault == "garbage":
        made.write_text("garbage")
    elif fault == "another host":
        named.write(Path("/etc/hostname"), "gpu2.example\n")
    else:
        certificate(made.parent, stem="x")[1].replace(key)
    issue(named)
    assert list(due(SELF, LAYOUT, named)) == []


def test_gateways_know_one_another_by_a_key_that_is_made_once(named: Host) -> None:
    several = Settings(service="q", gateway_hosts=("10.0.0.1", "10.0.0.2"))
    (change,) = due(several, LAYOUT, named)
    change.apply(named, Report())
    assert list(due(several, LAYOUT, named)) == []
    assert named.mode(LAYOUT.group_key) == 0o600
    made = named.at(LAYOUT.group_key)
    found = vllm_certificate.look(str(made), str(made))
    assert found.days_left > 3000, "nobody renews it"
    said = named.run("openssl", "x509", "-in", made, "-noout", "-subject", "-text").stdout
    for words in ("CN = q", "ecdsa-with-SHA256", "NIST CURVE: P-256"):
        assert words in said.replace("CN=", "CN = ")


@pytest.mark.parametrize("settings", [Settings(), dataclasses.replace(SELF, tls_cert="/c.pem", tls_key="/k.pem")])
def test_nothing_is_made_that_nobody_asked_for(named: Host, settings: Settings) -> None:
    assert list(due(settings, LAYOUT, named)) == []


@pytest.mark.parametrize(
    "name", ["a b", "x,DNS:bank.example", "x\nsubjectAltName=DNS:bank.example", "-x", "é", "x" * 300]
)
def test_a_name_that_is_none_becomes_no_part_of_it(named: Host, name: str) -> None:
    named.write(Path("/etc/hostname"), name)
    assert names(SELF, named) == ("localhost", "127.0.0.1", "::1", "10.0.0.7")
    assert authority.own_name(named) == "localhost"


def test_where_it_listens_everywhere_it_names_every_address(named: Host) -> None:
    found = names(dataclasses.replace(SELF, host="0.0.0.0"), named)
    assert found[:4] == ("localhost", "127.0.0.1", "::1", "gpu1.example")
    assert all("%" not in name for name in found)


def test_the_change_says_what_it_makes(named: Host) -> None:
    change = IssueCertificate(LAYOUT, ("localhost", "10.0.0.7"))
    assert change.describe() == "make a certificate for TLS that names localhost, 10.0.0.7"
    assert change.to_json() == {"kind": "certificate", "names": ["localhost", "10.0.0.7"]}
    assert authority.RENEWED_BEFORE < authority.DAYS
