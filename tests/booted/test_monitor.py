"""A host that is watched: a real Prometheus and node-exporter read what monitor enable wrote, for all services."""

from __future__ import annotations

import json
import re
import shutil
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.kit.alerting import collect_often, looks_often
from tests.kit.boot.machine import Machine
from tests.kit.boot.snapshot import difference, snapshot
from tests.kit.life import ask, cli, serves, standin, until

pytestmark = [
    pytest.mark.root, pytest.mark.skipif(not shutil.which("prometheus"), reason="prometheus is not installed"),
]  # fmt: skip
MONITOR = "/etc/vllm-install/monitor"
TEXTFILES = "/var/lib/prometheus/node-exporter"
HEAD = """\
global: {scrape_interval: 1s, evaluation_interval: 1s}
"""
NODE = "  - {job_name: node, static_configs: [{targets: ['127.0.0.1:9100']}]}\n"


class Host(NamedTuple):
    machine: Machine
    wheels: Path
    key: str
    bare: dict[str, str]


@pytest.fixture(scope="module")
def host(standin_wheels: Path) -> Iterator[Host]:
    with Machine() as machine:
        machine.shell(
            f"groupadd --system prometheus; useradd --system --gid prometheus prometheus; mkdir -p {TEXTFILES} "
            "/etc/prometheus"
        )
        machine.write("/etc/prometheus/prometheus.yml", HEAD + "scrape_configs:\n" + NODE)
        collect_often(machine)
        key = cli(machine, "deploy", *standin(standin_wheels)).key
        yield Host(machine, standin_wheels, key, snapshot(machine.root, IGNORED))


IGNORED = ("/var/lib/vllm-install/qwen3vl/state.json", "/etc/systemd/system/qwen3vl.service")


def series(machine: Machine, query: str) -> list[dict[str, Any]]:
    asked = f"http://127.0.0.1:9090/api/v1/query?query={urllib.parse.quote(query)}"
    said = machine.run("curl", "--silent", asked, check=False).stdout
    return list(json.loads(said)["data"]["result"]) if said.startswith("{") else []


def services_seen(machine: Machine) -> set[str]:
    return {each["metric"]["service"] for each in series(machine, 'up{job="vllm-install"} == 1')}


def test_prometheus_sees_every_service_with_a_key_that_it_alone_may_read(host: Host) -> None:
    machine = host.machine
    told = cli(machine, "monitor", "enable", "--json").json
    assert (told["enabled"], told["missing"], told["scraped"]) == (True, [], False)
    assert machine.shell(f"stat -c '%a %U:%G' {MONITOR}/key").stdout.strip() == "640 root:prometheus"
    roles = {key["name"]: key["role"] for key in cli(machine, "keys", "--json").json}
    assert roles["monitor"] == "metrics"
    # What it says is to be added is added as it stands, below what is there.
    lines = told["lines"].replace("scrape_configs:\n", "scrape_configs:\n" + NODE)
    lines += "" if "scrape_configs:" in lines else "scrape_configs:\n" + NODE
    machine.write("/etc/prometheus/prometheus.yml", HEAD + lines)
    machine.run("/usr/bin/promtool", "check", "config", "/etc/prometheus/prometheus.yml")
    machine.write("/etc/prometheus/prometheus.yml", HEAD + looks_often(lines))
    start = "systemd-run --collect --uid=prometheus --unit"
    machine.shell(
        f"{start} node-test prometheus-node-exporter --collector.disable-defaults --collector.textfile "
        f"--collector.textfile.directory={TEXTFILES} --web.listen-address=127.0.0.1:9100; "
        f"{start} prometheus-test --property=RuntimeDirectory=prom /usr/bin/prometheus --storage.tsdb.path=/run/prom "
        "--config.file=/etc/prometheus/prometheus.yml --web.listen-address=127.0.0.1:9090"
    )
    until("it is scraped", lambda: services_seen(machine) == {"qwen3vl"}, machine)
    until("its figures", lambda: series(machine, 'vllm_install_ready{service="qwen3vl"} == 1'), machine)
    assert series(machine, "vllm:num_requests_running"), "vLLM's own names are untouched"
    assert not series(machine, "vllm_install_source_failed")
    found = cli(machine, "monitor", "status", "--json").json
    assert (found["scraped"], found["alerted"], found["collects"]) == (True, True, True)
    assert (found["lines"], found["targets"]) == ("", ["127.0.0.1:8000"])
    serves(machine, host.key)


def test_the_rules_as_they_ship_fire_on_what_the_timer_collects(host: Host) -> None:
    machine, unit = host.machine, host.machine.at("/etc/systemd/system/qwen3vl.service")
    text, soon = unit.read_text(), machine.shell("date -ud +1hour +%FT%TZ").stdout.strip()
    unit.write_text(re.sub(r"default=sha256:\w+", rf"\g<0>@{soon}", text))
    firing = 'ALERTS{alertname="VllmKeyExpires",alertstate="firing",service="qwen3vl",key="default"}'
    until("it fires", lambda: series(machine, firing), machine)
    unit.write_text(text)


def test_a_new_service_appears_by_itself_and_leaves_when_it_is_uninstalled(host: Host) -> None:
    machine = host.machine
    cli(machine, "deploy", *standin(host.wheels), "--service", "second", "--port", "8001")
    until("it appears", lambda: services_seen(machine) == {"qwen3vl", "second"}, machine)
    cli(machine, "uninstall", "second", "--yes", "--purge")
    until("it leaves", lambda: services_seen(machine) == {"qwen3vl"}, machine)
    # One that has ended is read no more; its file goes when the figures are collected next.
    until("its file goes", lambda: not machine.at(f"{MONITOR}/targets/second.json").exists(), machine)


def test_a_new_key_takes_the_place_of_the_old_one_without_a_gap(host: Host) -> None:
    machine = host.machine
    old = machine.at(f"{MONITOR}/key").read_text()
    cli(machine, "monitor", "enable", "--rotate-key", "--json")
    new = machine.at(f"{MONITOR}/key").read_text()
    assert new != old
    for key in (old, new):
        assert ask(machine, "GET", "/metrics", key.strip()).status == 200
    assert ask(machine, "GET", "/v1/models", new.strip()).status != 200


def test_a_collector_that_is_killed_leaves_the_figures_whole_and_the_next_clears_up(host: Host) -> None:
    machine = host.machine
    machine.run("systemctl", "stop", "vllm-install-figures.timer", "vllm-install-figures.service")
    figures = machine.at(f"{TEXTFILES}/vllm-install.prom")
    before = figures.read_text()
    machine.write(f"{TEXTFILES}/.vllm-install.prom.0123", "torn")  # as far as one came that was killed while writing
    until("it is read", lambda: series(machine, "vllm_install_ready == 1"), machine)
    assert figures.read_text() == before
    cli(machine, "monitor", "collect")
    assert [path.name for path in machine.at(TEXTFILES).iterdir()] == ["vllm-install.prom"]
    assert figures.read_text() != before


def test_rules_that_were_edited_are_not_overwritten(host: Host) -> None:
    machine = host.machine
    rules = machine.at(f"{MONITOR}/rules.yml")
    text = rules.read_text()
    rules.write_text(text + "# mine\n")
    for verb in ("enable", "disable"):
        assert "was edited by hand" in cli(machine, "monitor", verb, code=3).err
    assert rules.read_text().endswith("# mine\n")
    cli(machine, "monitor", "enable", "--discard-edits")
    assert rules.read_text() == text


def test_nothing_is_left_when_nobody_watches_any_more(host: Host) -> None:
    machine = host.machine
    cli(machine, "monitor", "disable")
    machine.write("/etc/prometheus/prometheus.yml", HEAD + "scrape_configs:\n" + NODE)
    assert difference(host.bare, snapshot(machine.root, IGNORED)) == []
    assert {key["name"] for key in cli(machine, "keys", "--json").json} == {"default", "probe"}
    assert json.loads(cli(machine, "monitor", "status", "--json").out)["enabled"] is False
    serves(machine, host.key)
