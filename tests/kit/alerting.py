"""Prometheus, Alertmanager, node-exporter and a webhook in a machine, with our rules shortened."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from urllib.parse import quote

from installer.base.layout import FIGURES
from installer.monitor.rules import rules
from tests.kit.boot.machine import Machine, MachineFailed
from tests.kit.boot.surroundings import REPO
from tests.kit.life import SERVICE, ask, until

SCALE = 1 / 40
HOME = "/root/watch"
HOOK = f"""
import http.server, pathlib
class Hook(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with open("{HOME}/received", "ab") as file:
            file.write(body.strip() + b"\\n")
        self.send_response(200)
        self.end_headers()
    def log_message(self, *args):
        pass
http.server.HTTPServer(("127.0.0.1", 9999), Hook).serve_forever()
"""
PROMETHEUS = f"""
global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}
rule_files: [rules.yml]
alerting: {{alertmanagers: [{{static_configs: [{{targets: ["127.0.0.1:9093"]}}]}}]}}
scrape_configs:
  - job_name: node
    static_configs: [{{targets: ["127.0.0.1:9100"]}}]
  - job_name: vllm-install
    authorization: {{credentials_file: {HOME}/key}}
    static_configs: [{{targets: ["127.0.0.1:8000"], labels: {{service: {SERVICE}, member: "0", host: NAME}}}}]
"""
ALERTMANAGER = """
route: {receiver: hook, group_by: [alertname], group_wait: 0s, group_interval: 1s, repeat_interval: 1h}
receivers: [{name: hook, webhook_configs: [{url: "http://127.0.0.1:9999/"}]}]
"""
COLLECT = f"cd {HOME}; while :; do {sys.executable} -m installer monitor collect; sleep 1; done"
UNITS = {
    "hook": f"/usr/bin/python3 {HOME}/hook.py",
    "alertmanager": f"/usr/bin/prometheus-alertmanager --config.file={HOME}/alertmanager.yml "
    f"--storage.path={HOME}/alerts --web.listen-address=127.0.0.1:9093 --cluster.listen-address=",
    "node": f"/usr/bin/prometheus-node-exporter --collector.disable-defaults --collector.textfile "
    f"--collector.textfile.directory={FIGURES.parent} --web.listen-address=127.0.0.1:9100",
    "prometheus": f"/usr/bin/prometheus --config.file={HOME}/prometheus.yml --storage.tsdb.path={HOME}/data "
    "--web.listen-address=127.0.0.1:9090",
}


def looks_often(lines: str) -> str:
    """What `monitor enable` says is to be added: every two seconds instead of every fifteen."""
    return lines.replace("_interval: 15s", "_interval: 2s").replace("scrape_timeout: 10s", "scrape_timeout: 2s")


def collect_often(machine: Machine) -> None:
    """The timer that `monitor enable` will make looks every three seconds instead of every fifteen."""
    often = "[Timer]\nOnUnitActiveSec=\nOnActiveSec=1s\nOnUnitActiveSec=3s\n"
    machine.write("/etc/systemd/system/vllm-install-figures.timer.d/often.conf", often)


@dataclass
class Watch:
    """What watches the machine; alerts are counted from the fault that was planted last."""

    machine: Machine
    since: str = ""  # when the fault was planted
    client: str = ""  # the key of those who ask the service

    @classmethod
    def start(cls, machine: Machine, key: str, scale: float = SCALE) -> Watch:
        name = machine.run("cat", "/proc/sys/kernel/hostname").stdout.strip()
        texts = {
            "hook.py": HOOK,
            "prometheus.yml": PROMETHEUS.replace("NAME", name),
            "alertmanager.yml": ALERTMANAGER,
            "key": key,
        }
        for name, text in {**texts, "rules.yml": rules(scale), "collect": COLLECT}.items():
            machine.write(f"{HOME}/{name}", text)
        machine.at(FIGURES.parent).mkdir(parents=True)
        for name, command in UNITS.items():
            machine.shell(f"systemd-run -q --unit=watch-{name} {command}")
        found = cls(machine)
        found.collect()
        until("Prometheus scrapes", lambda: found.query('up{job="vllm-install"} == 1'), machine)
        return found

    def collect(self) -> None:
        self.machine.shell(f"systemd-run -q --unit=watch-collect --setenv=PYTHONPATH={REPO} sh {HOME}/collect")

    def query(self, expression: str) -> list[object]:
        try:
            answer = ask(self.machine, "GET", f"/api/v1/query?query={quote(expression)}", port=9090)
        except MachineFailed:  # it starts still
            return []
        return list(answer.json["data"]["result"]) if answer.status == 200 else []

    def mark(self, alert: str) -> None:
        """Begin to count; the alert must not be firing any more from something else."""
        until(f"{alert} is over", lambda: not self.query(f'ALERTS{{alertname="{alert}"}}'), self.machine)
        self.since = datetime.now(timezone.utc).isoformat()

    def received(self) -> list[dict[str, object]]:
        path = self.machine.at(f"{HOME}/received")
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def has_come(self, alert: str) -> bool:
        return any(
            each["labels"]["alertname"] == alert and each["status"] == "firing" and each["startsAt"] > self.since
            for message in self.received()
            for each in message["alerts"]  # type: ignore[attr-defined]
        )

    def fired(self, alert: str, since: float) -> float:
        until(f"{alert} at the webhook", lambda: self.has_come(alert), self.machine)
        return time.monotonic() - since
