"""Who has a gateway, and its texts: the golden ones, what HAProxy and systemd say, and no word of a user in them."""

from __future__ import annotations

import dataclasses
import re
import socket
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from installer import __version__
from installer.base.assets import RUNTIME
from installer.base.errors import UsageError
from installer.base.host import Host
from installer.base.layout import Layout
from installer.spec.asked import load_settings
from installer.spec.settings import Settings
from installer.spec.target import Replica, Target
from installer.units.gateway import (
    certificate_files,
    certificate_of,
    config_file,
    gateway_config,
    gateway_digest,
    gateway_files,
    needs_gateway,
)
from installer.units.graph import members, units
from installer.units.syntax import exec_line
from tests.kit.gateway import HAPROXY
from tests.kit.golden import golden
from tests.kit.samples import TEXTS, any_settings
from tests.kit.targets import target

LAYOUT = Layout("qwen3vl")
PLACE = Path("/opt/vllm-install/runtime/VERSION")
TWO = (Replica(1, 9001), Replica(2, 9002))
CASES = {
    "two": (Settings(replicas=2), TWO),
    "tls": (Settings(tls_cert="/etc/ssl/50% ours.pem", tls_key="/etc/ssl/k.pem", host="127.0.0.1"), TWO[:1]),
    "all": (
        Settings(
            replicas=2, tls="self", hold=0, routing="session", fallback_url="https://api.example/v1", drain=90,
            fallback_key_file="/etc/other key", fallback_model='a "b" $HOME %i',
        ),
        TWO,
    ),
    "hosts": (
        Settings(
            replicas=2, gateway_hosts=("10.0.0.1", "10.0.0.2", "10.0.0.3"), group_port=29600, host="127.0.0.1",
            routing="session",
        ),
        TWO,
    ),
}  # fmt: skip


def made(case: str) -> Target:
    chosen, replicas = CASES[case]
    return dataclasses.replace(target(chosen), replicas=replicas, others=chosen.gateway_hosts[1:])


def texts(want: Target, runtime: Path = PLACE) -> tuple[str, str]:
    files = gateway_files(want, LAYOUT, runtime)
    return files[LAYOUT.unit], files[config_file(LAYOUT)]


@pytest.mark.parametrize("case", CASES)
def test_the_texts_are_the_golden_ones(case: str) -> None:
    want = made(case)
    unit, config = (text.replace(f"vllm-install {__version__}", "vllm-install VERSION") for text in texts(want))
    unit = unit.replace(gateway_digest(want, LAYOUT, PLACE), "DIGEST")
    assert unit == golden(f"gateway-{case}.service", unit)
    assert config == golden(f"gateway-{case}.cfg", config)


@pytest.mark.parametrize(
    ("chosen", "has_one"),
    [
        (Settings(), False), (Settings(replicas=2), True), (Settings(tls="self"), True),
        (Settings(tls_cert="/c", tls_key="/k"), True), (Settings(fallback_url="https://a.example/v1"), True),
        (Settings(gateway_hosts=("10.0.0.1", "10.0.0.2")), True),
        (Settings(group_hosts=("10.0.0.1", "10.0.0.2"), host="0.0.0.0"), True),
        (Settings(group_hosts=("10.0.0.1", "10.0.0.2"), host="127.0.0.2"), False),
        (Settings(routing="session", fallback_model="x", hold=0), False),
    ],
)  # fmt: skip
def test_one_engine_without_tls_and_fallback_has_none(chosen: Settings, has_one: bool) -> None:
    assert needs_gateway(chosen) == has_one
    assert gateway_files(target(chosen), LAYOUT, PLACE) == {}


def test_no_regular_expression_is_compiled_where_no_memory_may_be_made_executable() -> None:
    for case in CASES:
        unit, config = texts(made(case))
        assert "MemoryDenyWriteExecute=yes" in unit
        assert not re.search(r"_reg\b|-m reg\b|regsub|replace-", config)


def test_before_the_head_of_one_model_on_several_hosts_tls_ends_at_the_gateway() -> None:
    """Which asks this host's engine and no other host, and lets in more than the group."""
    hosts = ("10.0.0.1", "10.0.0.2")
    chosen = Settings(group_hosts=hosts, group_key_file="/k", tls="self", host="0.0.0.0")
    unit, config = texts(dataclasses.replace(target(chosen), replicas=TWO[:1]))
    assert 'bind "fd@${LISTENER}" ssl crt "/run/qwen3vl/tls.pem"' in config
    assert re.findall(r"^ +server (r\d+) ", config, re.MULTILINE) == ["r1", "r1"], "in two backends"
    assert "IPAddressDeny=any" not in unit
    assert not [host for host in hosts if host in unit + config]


def test_which_replicas_there_are_is_no_reason_for_a_restart() -> None:
    one, two = (dataclasses.replace(made("two"), replicas=TWO[:count]) for count in (1, 2))
    assert gateway_digest(one, LAYOUT, PLACE) == gateway_digest(two, LAYOUT, PLACE)
    other = dataclasses.replace(two, settings=dataclasses.replace(two.settings, port=8001))
    assert gateway_digest(other, LAYOUT, PLACE) != gateway_digest(two, LAYOUT, PLACE)


@given(any_settings())
@settings(max_examples=60)
def test_nothing_that_a_user_types_stands_in_the_configuration(chosen: Settings) -> None:
    """But numbers: every line is one of those that the golden ones consist of."""
    want = dataclasses.replace(target(dataclasses.replace(chosen, service="q")), replicas=TWO)
    known = re.compile(
        "|".join(
            re.sub(r"\\?\b\d+", r"\\d+", re.escape(line.replace("qwen3vl", "q")))
            for case in CASES
            for line in {*texts(made(case))[1].splitlines()}
        )
    )
    for line in gateway_config(want, Layout("q"), PLACE).splitlines():
        assert known.fullmatch(line), line


@given(st.sampled_from(("tls_cert", "tls_key", "fallback_url", "fallback_key_file", "fallback_model")), TEXTS)
@settings(max_examples=200)
def test_a_value_stays_within_its_line_of_the_unit(name: str, text: str) -> None:
    start = {"fallback_url": "https://h/", "fallback_model": ""}.get(name, "/")
    try:
        chosen = load_settings("qwen3vl", {}, {}, {"tls_cert": "/c", "tls_key": "/k", "fallback_url": "https://h/v1",
                                                   "fallback_key_file": "/f", name: start + text})  # fmt: skip
        unit = texts(dataclasses.replace(target(chosen), replicas=TWO))[0]
    except UsageError:
        return
    plain = texts(made("all"))[0]
    assert len(unit.splitlines()) <= len(plain.splitlines()) + 2
    for section in ("[Unit]", "[Service]", "[Install]"):
        assert unit.splitlines().count(section) == 1
    if name == "fallback_model" and chosen.fallback_model:
        assert exec_line(unit)[-2] == chosen.fallback_model


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    for case in CASES:
        unit = texts(made(case))[0]
        unit = re.sub(r"^(Exec\w+=\+?)\S+", r"\1/bin/true", unit, flags=re.MULTILINE)
        path = tmp_path / f"{case}.service"
        path.write_text(re.sub(r"^(Wants|After|PropagatesReloadTo)=.*\n", "", unit, flags=re.MULTILINE))
        done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True)
        assert (done.returncode, [line for line in done.stderr.splitlines() if case in line]) == (0, [])


@pytest.mark.skipif(HAPROXY is None, reason="no haproxy here")
@pytest.mark.parametrize("half", [{}, {"KEEPER": "yes"}], ids=["most", "large"])
@pytest.mark.parametrize("case", CASES)
def test_haproxy_takes_the_configuration(case: str, half: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    certificate(tmp_path / "run/tls.pem")
    certificate(tmp_path / "run/peers.pem")
    (tmp_path / "run/servers").write_text("1\n")
    config = texts(made(case), RUNTIME)[1].replace("/run/qwen3vl", str(tmp_path / "run"))
    (tmp_path / "cfg").write_text(config)
    with socket.socket() as listener:
        done = subprocess.run(
            [str(HAPROXY), "-c", "-f", tmp_path / "cfg"], capture_output=True, text=True,
            env={"LISTENER": str(listener.fileno()), **half}, pass_fds=[listener.fileno()],
        )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if "WARNING" in line or "ALERT" in line]
    assert (done.returncode, said) == (0, [])


def certificate(path: Path) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=h", "-keyout", path.with_suffix(".k"), "-out", path.with_suffix(".c")],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_text(path.with_suffix(".c").read_text() + path.with_suffix(".k").read_text())


@pytest.mark.parametrize("fallback", [None, "https://api.example/v1"])
def test_a_gateway_for_this_host_alone_reaches_no_other_but_for_a_fallback(fallback: str | None) -> None:
    chosen = Settings(replicas=2, host="127.0.0.1", fallback_url=fallback)
    unit, _ = gateway_files(dataclasses.replace(target(chosen), replicas=TWO), LAYOUT, PLACE).values()
    assert ("IPAddressDeny=any" in unit) == (fallback is None)


def test_a_gateway_has_to_present_its_certificate_and_a_replica_speaks_plain_http(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = dataclasses.replace(target(Settings(replicas=2, tls="self")), replicas=TWO)
    files = certificate_files(made.settings, LAYOUT)
    assert files
    host.write(files[0], "the certificate")
    (*engines, gateway) = units(LAYOUT, made)
    assert certificate_of(host, gateway, made.settings) == "the certificate"
    assert [certificate_of(host, each, made.settings) for each in engines] == [None, None]
    (single,) = members(LAYOUT)
    assert certificate_of(host, single, Settings()) is None

    def closed(*_: object) -> str:
        raise PermissionError

    monkeypatch.setattr(Host, "read", closed)
    assert certificate_of(host, gateway, made.settings) == "", "then nobody is believed, and not everybody"
