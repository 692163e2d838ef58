"""Two hosts that one Prometheus reads: on either, with the key of each known to the other, and with their names."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from installer.base.layout import FIGURES
from installer.monitor.rules import rules
from installer.units.monitoring import KEY
from tests.booted.test_alerts import SEEN, write_seen
from tests.kit.alerting import ALERTMANAGER, HOME, HOOK, SCALE, UNITS, Watch, collect_often
from tests.kit.boot.hosts import hosts
from tests.kit.boot.machine import Machine
from tests.kit.boot.network import Network
from tests.kit.life import ask, cli, is_up, standin, until

pytestmark = [
    pytest.mark.root, pytest.mark.skipif(not shutil.which("prometheus"), reason="prometheus is not installed"),
]  # fmt: skip

ALERT = "VllmHostLost"
MONITOR = "/etc/vllm-install/monitor"
NODE = "  - {job_name: node, static_configs: [{targets: ['127.0.0.1:9100']}]}\n"
HEAD = """\
global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}
rule_files: [shorter.yml]
alerting: {alertmanagers: [{static_configs: [{targets: ["127.0.0.1:9093"]}]}]}
"""


class Two(NamedTuple):
    network: Network
    one: Machine
    other: Machine
    watch: Watch

    def hosts(self, expression: str) -> set[str]:
        return {found["metric"].get("host", "") for found in self.series(expression)}

    def series(self, expression: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.watch.query(expression)  # type: ignore[assignment]
        return found

    def reads(self, what: str, expression: str, *names: str) -> None:
        until(f"{what}: {names}", lambda: self.hosts(expression) == {*names}, self.one, 120)


@pytest.fixture(scope="module")
def two(standin_wheels: Path) -> Iterator[Two]:
    with hosts(2) as (network, (one, other)):
        for machine in (one, other):
            machine.shell(f"mkdir -p {FIGURES.parent}")
            collect_often(machine)
        other.shell("mount --bind /dev/null /usr/bin/prometheus")  # it has none
        one.shell("groupadd --system prometheus; useradd --system --gid prometheus prometheus")
        one.write("/etc/prometheus/prometheus.yml", HEAD + "scrape_configs:\n" + NODE)
        cli(one, "deploy", "--hosts", "gpu1,gpu2", "--gateway-hosts", "auto", *standin(standin_wheels))
        one.write("/etc/prometheus/shorter.yml", rules(SCALE))
        for name, text in {"hook.py": HOOK, "alertmanager.yml": ALERTMANAGER}.items():
            one.write(f"{HOME}/{name}", text)
        for name in ("hook", "alertmanager"):
            one.shell(f"systemd-run -q --unit=watch-{name} {UNITS[name]}")
        one.shell(f"systemd-run -q --unit=watch-node {UNITS['node']}")
        other.shell(f"systemd-run -q --unit=watch-node {UNITS['node'].replace('127.0.0.1:9100', ':9100')}")
        yield Two(network, one, other, Watch(one))
        write_seen()


def names_of_keys(machine: Machine) -> set[str]:
    return {key["name"] for key in cli(machine, "keys", "--json").json}


def start_prometheus(machine: Machine, lines: str) -> None:
    """With what is to be added, of a user who may read the key and nothing else of ours."""
    told = "".join(line for line in lines.splitlines(keepends=True) if not line.startswith("rule_files:"))
    told = told.replace("scrape_configs:\n", "scrape_configs:\n" + NODE)
    told += "" if "scrape_configs:" in told else "scrape_configs:\n" + NODE
    machine.write("/etc/prometheus/prometheus.yml", HEAD + told)
    machine.run("/usr/bin/promtool", "check", "config", "/etc/prometheus/prometheus.yml")
    machine.shell(
        "systemd-run -q --uid=prometheus --unit=watch-prometheus --property=RuntimeDirectory=prom /usr/bin/prometheus "
        "--storage.tsdb.path=/run/prom --config.file=/etc/prometheus/prometheus.yml "
        "--web.listen-address=127.0.0.1:9090"
    )


def test_one_prometheus_reads_both_hosts_by_their_names(two: Two) -> None:
    one, other = two.one, two.other
    before = [set(names_of_keys(machine)) for machine in (one, other)]
    shown = cli(other, "monitor", "enable", "--all-hosts", "--json").json["hosts"]
    assert {name: host["enabled"] for name, host in shown.items()} == {"gpu1": True, "gpu2": True}
    start_prometheus(one, shown["gpu1"]["lines"])
    two.reads("engines", 'up{job="vllm-install"} == 1', "gpu1", "gpu2")
    two.reads("their own figures", "vllm:num_requests_running", "gpu1", "gpu2")
    two.reads("what systemd says", "vllm_install_ready == 1", "gpu1", "gpu2")
    assert len(two.series("vllm_install_ready")) == 2, "each once"
    above = ask(one, "GET", "/federate?match[]=vllm_install_ready", port=9090).body.splitlines()
    assert [any(f'host="{name}"' in line for line in above) for name in ("gpu1", "gpu2")] == [True, True]
    assert not two.series('ALERTS{alertstate="firing"}')

    # Each knows the other's key by its digest; the key itself is where it was made, for that group alone
    assert [names_of_keys(machine) - then for machine, then in zip((one, other), before, strict=True)] == [
        {"monitor", "monitor-of-gpu2"}, {"monitor", "monitor-of-gpu1"},
    ]  # fmt: skip
    roles = {key["name"]: key["role"] for key in cli(other, "keys", "--json").json}
    assert (roles["monitor"], roles["monitor-of-gpu1"]) == ("metrics", "metrics")
    text = one.at(KEY).read_text().strip()
    assert other.shell(f"grep -rlF {text} /etc /var/lib /run /opt/vllm-install/carried || :").stdout == ""
    assert text not in other.journal() + one.journal()
    assert one.shell(f"stat -c '%a %U:%G' {KEY}").stdout.strip() == "640 root:prometheus"
    assert other.shell(f"stat -c '%a %U:%G' {KEY}").stdout.strip() == "600 root:root"

    # It opens the figures of the other host, and nothing else there; without it they are closed
    path = f"/hosts/{two.network.address(2)}/engines/1/metrics"
    assert ask(one, "GET", path, text).status == 200
    assert ask(one, "GET", path).status == 401
    assert ask(one, "GET", "/v1/models", text).status == 403

    found = cli(one, "monitor", "status", "--all-hosts", "--json").json["hosts"]
    assert (found["gpu1"]["hosts"], found["gpu2"]["hosts"]) == (["gpu2"], ["gpu1"])
    assert (found["gpu1"]["missing"], found["gpu2"]["missing"], found["gpu2"]["lines"]) == ([], [], "")
    # What is one host's own keeps no change of all of them
    cli(one, "set-context", "2048")


def test_a_new_key_is_known_to_the_other_host_too(two: Two) -> None:
    one, other = two.one, two.other
    path = f"/hosts/{two.network.address(2)}/engines/1/metrics"
    old = one.at(KEY).read_text().strip()
    cli(other, "monitor", "enable", "--all-hosts", "--rotate-key")
    new = one.at(KEY).read_text().strip()
    assert new != old
    assert (ask(one, "GET", path, new).status, ask(one, "GET", path, old).status) == (200, 401)
    said = cli(one, "monitor", "enable", "--rotate-key").err
    assert "to tell them the new one: sudo vllm-install monitor enable --all-hosts" in said
    cli(one, "monitor", "enable", "--all-hosts")
    assert ask(one, "GET", path, one.at(KEY).read_text().strip()).status == 200


def test_a_host_that_is_lost_is_told_with_its_name(two: Two) -> None:
    one, watch = two.one, two.watch
    two.reads("both", 'up{job="vllm-install"} == 1', "gpu1", "gpu2")
    watch.mark(ALERT)
    began = time.monotonic()
    two.network.cut(2)
    seconds = watch.fired(ALERT, began)
    two.reads("the lost one", f'ALERTS{{alertname="{ALERT}",alertstate="firing"}}', "gpu2")
    told = [each for message in watch.received() for each in message["alerts"]]  # type: ignore[attr-defined]
    alert = next(each for each in told if each["labels"]["alertname"] == ALERT)
    assert alert["labels"]["host"] == "gpu2"
    assert alert["annotations"]["runbook_url"].endswith("#vllmhostlost")
    findings = [each["id"] for each in cli(one, "doctor", "--json", code=8).json["findings"]]
    assert "host-lost" in findings
    SEEN[ALERT] = {"seconds": round(seconds), "doctor": "host-lost"}
    two.network.mend(2)
    two.reads("both again", 'up{job="vllm-install"} == 1', "gpu1", "gpu2")


def test_a_host_that_is_taken_out_leaves_and_comes_back_also_when_it_was_installed_anew(two: Two) -> None:
    one, other = two.one, two.other
    cli(one, "hosts", "drain", "gpu2")
    two.reads("one of them", 'up{job=~"vllm-install.*"}', "gpu1")
    assert json.loads(one.at(f"{MONITOR}/targets/hosts.yml").read_text()) == []
    assert not two.series(f'ALERTS{{alertname="{ALERT}"}}')
    cli(other, "monitor", "disable")
    cli(other, "uninstall", "--yes", "--purge", "--this-host-only")
    cli(one, "hosts", "join", "gpu2")
    assert is_up(other)
    two.reads("both again", 'up{job="vllm-install"} == 1', "gpu1", "gpu2")
    two.reads("what systemd says", "vllm_install_ready == 1", "gpu1", "gpu2")


def test_nothing_of_it_is_left_when_nobody_watches_any_more(two: Two) -> None:
    said = cli(two.one, "monitor", "disable", "--all-hosts").out
    assert {line.partition(":")[0] for line in said.splitlines()} == {"gpu1", "gpu2"}
    for machine in (two.one, two.other):
        assert names_of_keys(machine) == {"default", "probe"}
        assert not machine.at(MONITOR).exists()
