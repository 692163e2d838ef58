"""What doctor finds where an alert says that clients wait or are refused, or that Prometheus itself sees nothing."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator

from installer.base.errors import InstallError
from installer.base.language import tr
from installer.base.layout import FIGURES, MONITOR
from installer.diagnosis.finding import NOTE, Finding
from installer.diagnosis.scene import Scene
from installer.families.known import family_counting
from installer.runtime import vllm_usage
from installer.runtime.vllm_text import one_line
from installer.spec import keys
from installer.spec.keys import Key
from installer.spec.values import seconds
from installer.units import alarm
from installer.units.api import NoAnswer
from installer.units.keyring import unit_keys
from installer.units.systemd import unit_properties

BUCKET = r'^{name}_bucket\{{.*?\ble="([^"]+)".*\}} (\S+)$'
MANY, ONE_IN = 20, 10  # as the alert has it
WATCHED = 80.0  # seconds, of the 120 after which systemd acts; as the alert has it
SILENT = 120.0  # seconds; the timer writes every fifteen
MISSING = re.compile(r"^# why: (.*)\nvllm_install_source_failed\{(.*)\} 1$", re.MULTILINE)
LONGEST = 16 << 20  # bytes of the figures


def _metrics(scene: Scene) -> str:
    if not scene.serves or not scene.probe_key:
        return ""
    try:
        return scene.api(5.0).ask("GET", "/metrics").body.decode(errors="replace")
    except NoAnswer:
        return ""


def check_watcher(scene: Scene) -> Iterator[Finding]:
    """It is silent before systemd acts on that: the engine may still answer, and the next hang would cost requests."""
    told = scene.unit.get("WatchdogTimestampMonotonic", "")
    if scene.active != "active" or scene.is_gateway or not told.isdecimal() or told == "0":
        return
    age = time.clock_gettime(time.CLOCK_MONOTONIC) - int(told) / 1e6
    if age > WATCHED:
        yield Finding(
            "watcher-silent",
            tr("who watches the engine is silent, and systemd will start the service anew"),
            tr("nothing for {age:.0f} s", age=age),
            (f"sudo systemctl restart {scene.member.stem}",),
            NOTE,
        )


def check_targets(scene: Scene) -> Iterator[Finding]:
    """Of all requests since this engine started: how many were later than the target allows one in twenty to be."""
    asked = {"ttft": scene.settings.target_ttft, "itl": scene.settings.target_itl}
    if not any(asked.values()):
        return
    text = _metrics(scene)
    names = family_counting(text).metrics
    for of, metric in (("ttft", names.first_token), ("itl", names.between_tokens)):
        if asked[of] and (slow := percentile(text, metric, 0.95)) > seconds(asked[of]):
            told = tr("one in twenty took longer than {slow:.3g} s, since this engine started", slow=slow)
            cause = tr("clients wait longer for a first token than TARGET_TTFT says")
            if of == "itl":
                cause = tr("clients wait longer for each token than TARGET_ITL says")
            look = f"vllm-install status {scene.service} --watch"
            yield Finding(f"{of}-beyond-target", cause, told, (look, f"{scene.deploy} -- --max-num-seqs 64"), NOTE)


def percentile(metrics: str, name: str, share: float) -> float:
    """As Prometheus reckons it, even within a bucket, so that it and doctor agree; 0 where nothing is told."""
    counts: dict[float, float] = {}
    for bound, count in re.findall(BUCKET.format(name=re.escape(name)), metrics, re.MULTILINE):
        try:
            counts[float(bound)] = counts.get(float(bound), 0.0) + float(count)
        except ValueError:
            return 0.0
    wanted = share * counts.get(float("inf"), 0.0)
    below, kept = 0.0, 0.0
    for bound in sorted(counts) if wanted else ():
        if counts[bound] >= wanted:
            return (
                below if bound == float("inf") else below + (bound - below) * (wanted - kept) / (counts[bound] - kept)
            )
        below, kept = bound, counts[bound]
    return 0.0


def check_refusals(scene: Scene) -> Iterator[Finding]:
    """Of which key more than one request in ten is refused today, as the service itself keeps count."""
    if not scene.is_root:
        return
    there = {key.name for key in _held(scene)}
    for key, today in _used_today(scene):
        if key in there and today.refused > MANY and today.refused * ONE_IN > today.requests:
            told = tr("today {refused} refused, {asked} answered", refused=today.refused, asked=today.requests)
            yield Finding(
                "requests-refused",
                tr("many requests of the key {name} are refused: its limit, or the bound on the queue", name=key),
                told,
                (f"sudo vllm-install usage --service {scene.service}", "sudo vllm-install keys limit --help"),
                NOTE,
            )


def _held(scene: Scene) -> list[Key]:
    """The unit's keys; none where one of them cannot be read, which is a finding of its own."""
    try:
        return unit_keys(scene.host, scene.layout)
    except InstallError:
        return []


def _used_today(scene: Scene) -> Iterator[tuple[str, vllm_usage.Numbers]]:
    """A file of the service's own: of another's nothing is read, and of this one no more than it can be."""
    layout, today = scene.layout, int(time.time() // 86400)
    owner = scene.host.owner(layout.usage_dir)
    text = scene.host.read_of(layout.usage_file, () if owner is None else (owner,), vllm_usage.SIZE)
    for used in vllm_usage.read((text or "").encode(errors="surrogateescape")):
        if today in used.days:
            yield used.name, used.days[today]


def check_scrape_key(scene: Scene) -> Iterator[Finding]:
    """Prometheus's key has to be one of the service's: with another it sees nothing, and says only `down`."""
    if not scene.is_root or not scene.unit_text or not scene.host.exists(MONITOR / "key"):
        return
    asking, known = scene.host.read(MONITOR / "key") or "", {key.digest for key in _held(scene)}
    if known and keys.digest(asking.strip()) not in known:
        yield Finding(
            "monitor-key-refused",
            tr("the service does not know the key with which Prometheus asks it"),
            str(MONITOR / "key"),
            ("sudo vllm-install monitor enable",),
            NOTE,
        )


def check_figures(scene: Scene) -> Iterator[Finding]:
    """The figures of the host stand still: whoever watches is blind, and does not know it."""
    if not scene.host.exists(MONITOR):
        return
    written = scene.host.modified(FIGURES)
    age = None if written is None else time.time() - written
    if age is None or age > SILENT:
        said = tr("{path} has not been written for {age:.0f} s", path=FIGURES, age=age or 0)
        yield Finding(
            "figures-stale",
            tr("nobody collects this host's figures for Prometheus"),
            said if age is not None else tr("{path}: no such file", path=FIGURES),
            ("systemctl status vllm-install-figures.timer", "sudo vllm-install monitor enable"),
            NOTE,
        )
        return
    text = scene.host.read_of(FIGURES, (0, os.geteuid()), LONGEST) or ""
    for why, of in MISSING.findall(text):
        if "service=" not in of or f'service="{scene.service}"' in of:
            cause = tr("figures of this host are missing: {what}", what=one_line(of))
            yield Finding("figures-incomplete", cause, one_line(why), ("sudo vllm-install monitor collect",), NOTE)
            return


def check_telling(scene: Scene) -> Iterator[Finding]:
    """Whoever was to be told what became of the service hears nothing; the unit that sends knows how it ended last."""
    if not scene.settings.notifies:
        return
    sender = alarm.sender(scene.layout)
    result = unit_properties(scene.host, sender, "Result").get("Result", "success")
    if result != "success":
        yield Finding(
            "notify-failed",
            tr("NOTIFY_URL or NOTIFY_COMMAND did not take the last message"),
            f"{sender}: {one_line(result)}",
            (f"sudo vllm-install alarm --test --service {scene.service}", f"sudo journalctl -u {sender} -n 20"),
            NOTE,
        )
