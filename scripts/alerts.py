"""Writes docs/alerts.md from the table of alerts: `python -m scripts.alerts`."""

from __future__ import annotations

import json
from pathlib import Path

from installer.monitor.rules import Alert, alerts, scaled

FIRED = Path(__file__).parents[1] / "tests/golden/alerts-fired.json"
PAGE = Path(__file__).parents[1] / "docs/alerts.md"
HEAD = """# When an alert fires

<!-- Made by `make docs` from installer/data/alerts.json: edit that. -->

Prometheus reads the rules from `/etc/vllm-install/monitor/rules.yml`. A *critical* alert says that somebody is not
served; a *warning* that somebody will not be, or is served badly. Each carries as annotations the findings of `doctor`
that explain it (`doctor`), what to type (`command`) and its section here (`runbook_url`: where you keep this page is
said by `monitor enable --runbooks URL`). TTFT and ITL have no sensible default: `sudo vllm-install set TARGET_TTFT=2s
TARGET_ITL=50ms` sets what is promised, and only then are they alerted on.

Every rule is held to series by `promtool test rules`: when it fires, and when it does not.

"""


SEEN = """
## Seen to fire

A test boots a host with the stand-in engine, plants each fault, and waits for the alert to come through Prometheus and
Alertmanager to a webhook; then it asks `doctor`. Its spans are 40 times shorter than those above, and Prometheus looks
each second: the seconds are those of that test, once, and no promise. No machine there has a GPU: a library in the
place of NVIDIA's says what one would say, and a line of the driver's is written into the kernel's journal; from there
on all of it is real, from the collector to the webhook. The faults of replicas, certificate and GPUs come several at a
time.

| alert | planted | seconds to the webhook | `doctor` says |
|---|---|---|---|
"""


def page() -> str:
    rows = "".join(f"| [{a.name}](#{a.anchor}) | {a.severity} | {a.wait} | {_first(a)} |\n" for a in alerts())
    table = f"| alert | | after | `doctor` says |\n|---|---|---|---|\n{rows}"
    return f"{HEAD}{table}{''.join(map(_section, alerts()))}{SEEN}{_seen()}"


def _seen() -> str:
    fired = json.loads(FIRED.read_text())
    return "".join(
        f"| {a.name} | {a.planted} | {fired[a.name]['seconds']} | {_code(fired[a.name]['doctor'])} |\n"
        for a in alerts()
    )


def _code(finding: str) -> str:
    return f"`{finding}`" if finding else ""


def _first(alert: Alert) -> str:
    return f"`{alert.doctor[0]}`"


def _section(alert: Alert) -> str:
    findings = ", ".join(f"`{name}`" for name in alert.doctor)
    commands = "".join(f"    {_example(command)}\n" for command in alert.commands)
    return (
        f"\n## {alert.name}\n\n{alert.means}\n\n`doctor` then says {findings}. Fired by: {alert.planted}."
        f"\n\n{commands}\n    # {scaled(alert.expr, 1)}\n"
    )


def _example(command: str) -> str:
    for label, example in (("service", "qwen3vl"), ("key", "default"), ("host", "gpu2")):
        command = command.replace(f"{{{{ $labels.{label} }}}}", example)
    return command


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
