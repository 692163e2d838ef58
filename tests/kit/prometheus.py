"""A real Prometheus and node-exporter beside a service, which look at it every second."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from tests.kit.boot.surroundings import free_port

PATIENCE = 300.0


@dataclass(frozen=True)
class Target:
    """An engine that is scraped with a key."""

    service: str
    member: str
    port: int
    key: str


@dataclass(frozen=True)
class Series:
    labels: dict[str, str]
    points: list[tuple[float, float]]


class NotReady(Exception):
    """It listens, and answers nothing yet."""


class Prometheus:
    """Asked over its HTTP interface; `figures` is the folder of node-exporter's textfiles."""

    def __init__(self, port: int, figures: Path) -> None:
        self.port, self.figures = port, figures

    def write(self, text: str) -> None:
        """As the collector does: whole, or not at all."""
        fresh = self.figures / "figures.tmp"
        fresh.write_text(text)
        fresh.rename(self.figures / "figures.prom")

    def now(self, expr: str) -> list[Series]:
        return self._series("query", query=expr)

    def between(self, expr: str, start: float, end: float, step: float) -> list[Series]:
        return self._series("query_range", query=expr, start=start, end=end, step=step)

    def has_data(self, expr: str) -> bool:
        return any(not math.isnan(value) for series in self.now(expr) for _, value in series.points)

    def is_up(self) -> bool:
        """Refused and 503 are what a Prometheus says that still reads what it kept."""
        with contextlib.suppress(OSError, NotReady):
            return len([series for series in self.now("up") if series.points[-1][1] == 1]) >= 2
        return False

    def _series(self, what: str, **asked: object) -> list[Series]:
        data = urllib.parse.urlencode(asked).encode()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/{what}", data, timeout=30) as answer:
                found = json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            if error.code == HTTPStatus.SERVICE_UNAVAILABLE:
                raise NotReady from None
            raise AssertionError(f"{asked['query']}: {error.read().decode()}") from None
        return [_one(each) for each in found]


def _one(found: dict[str, Any]) -> Series:
    points = found.get("values") or [found["value"]]
    return Series(found["metric"], [(float(at), float(value)) for at, value in points])


@contextlib.contextmanager
def watching(home: Path, targets: Sequence[Target]) -> Iterator[Prometheus]:
    """From the first scrape of each target on."""
    figures, ours, node = home / "figures", free_port(), free_port()
    figures.mkdir(parents=True)
    config = home / "prometheus.yml"
    config.write_text(json.dumps(_config(home, targets, node)))  # JSON is YAML
    exporter = (
        "prometheus-node-exporter", f"--web.listen-address=127.0.0.1:{node}", "--collector.disable-defaults",
        "--collector.textfile", f"--collector.textfile.directory={figures}", "--collector.cpu", "--collector.meminfo",
    )  # fmt: skip
    words = ("prometheus", f"--config.file={config}", f"--storage.tsdb.path={home / 'data'}")
    with _running(home, *exporter), _running(home, *words, f"--web.listen-address=127.0.0.1:{ours}"):
        prometheus = Prometheus(ours, figures)
        deadline = time.monotonic() + PATIENCE
        while not prometheus.is_up():
            assert time.monotonic() < deadline, (home / "prometheus.log").read_text()
            time.sleep(0.1)
        yield prometheus


def _config(home: Path, targets: Sequence[Target], node: int) -> dict[str, Any]:
    jobs: list[dict[str, Any]] = [{"job_name": "node", "static_configs": [{"targets": [f"127.0.0.1:{node}"]}]}]
    for index, target in enumerate(targets):
        (home / f"key-{index}").write_text(target.key)
        labels = {"job": "vllm-install", "service": target.service, "member": target.member}
        jobs.append(
            {
                "job_name": f"vllm-install-{index}",
                "authorization": {"credentials_file": str(home / f"key-{index}")},
                "static_configs": [{"targets": [f"127.0.0.1:{target.port}"], "labels": labels}],
            }
        )
    return {"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}


@contextlib.contextmanager
def _running(home: Path, *words: str) -> Iterator[None]:
    with (home / f"{words[0]}.log").open("w") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, cwd=home)
    try:
        yield
    finally:
        process.terminate()
        process.wait()
