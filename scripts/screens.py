"""What the verbs show, as pictures in docs/images: a real deployment in a booted machine, the real vLLM on the CPU."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass

from installer.base.language import CHINESE, ENGLISH
from scripts.terminal import picture, record, settled
from tests.kit.boot.machine import Machine
from tests.kit.boot.surroundings import REPO, inherited_environment

IMAGES = REPO / "docs/images"
LOCALES = {ENGLISH: "C.UTF-8", CHINESE: "zh_CN.UTF-8"}
MODEL = "builtin:tiny"
COLUMNS, LINES = 110, 50


@dataclass(frozen=True)
class Screen:
    """One picture. `before` is a script that arranges what is to be seen; `until` ends a verb that never does."""

    name: str
    typed: str
    before: str = ""
    until: str | None = None
    busy: bool = False  # clients ask all the while


# In this order, on one machine: the first deploys, the last finds it broken.
SCREENS = (
    Screen("recommend", "vllm-install models recommend --gpu 24GiB"),
    Screen("deploy", f"vllm-install deploy --model {MODEL} --engine cpu"),
    Screen("set-context", "vllm-install set-context 32k --dry-run"),
    Screen("status", "vllm-install status"),
    Screen("status-watch", "vllm-install status --watch", until=r"tokens/s[^\n]*[1-9][^\n]*\n[^\n]*p50", busy=True),
    Screen("test", "vllm-install test"),
    Screen("doctor-healthy", "vllm-install doctor"),
    Screen(
        "doctor",
        "vllm-install doctor",
        before="systemctl stop qwen3vl; systemd-run -q --unit=taker python3 -m http.server 8000;"
        " until ss -Hltn | grep -q :8000; do sleep 0.1; done",
    ),
    Screen("status-failed", "vllm-install status"),
)


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    with Machine(network=True, store=True) as machine:
        machine.run(sys.executable, REPO / "tests/kit/boot/build_engine.py", timeout=900)
        machine.save_store()
    for language, locale in LOCALES.items():
        with Machine(store=True) as machine:
            key = ""
            for screen in SCREENS:
                shown = show(machine, screen, locale, key)
                if found := re.search(r"\bsk-[\w-]{20,}", shown):
                    key = found[0]
                suffix = "" if language == ENGLISH else f".{language}"
                svg = picture("vllm-install", screen.typed, shown, COLUMNS)
                (IMAGES / f"{screen.name}{suffix}.svg").write_text(svg)
                print(f"== {screen.typed}\n{shown}", flush=True)


def show(machine: Machine, screen: Screen, locale: str, key: str) -> str:
    """What stands on the terminal when the verb is done."""
    if screen.before:
        machine.shell(screen.before)
    words = [sys.executable, "-m", "installer", *shlex.split(screen.typed)[1:]]
    clients = ask_all_the_while(machine, key) if screen.busy else []
    environment = {**inherited_environment(), "LANG": locale}
    try:
        return settled(record(machine.command(*words), environment, COLUMNS, LINES, screen.until))
    finally:
        for client in clients:
            os.killpg(client.pid, signal.SIGKILL)
            client.wait()


def ask_all_the_while(machine: Machine, key: str) -> list[subprocess.Popen[str]]:
    body = json.dumps({"model": MODEL, "prompt": "Hello", "max_tokens": 200, "ignore_eos": True})
    asking = (
        f"while :; do curl -s http://127.0.0.1:8000/v1/completions -H 'Authorization: Bearer {key}' "
        f"-H 'Content-Type: application/json' -d '{body}' >/dev/null || exit; done"
    )
    return [machine.start("setpriv", "--pdeathsig", "KILL", "sh", "-c", asking) for _ in range(3)]


if __name__ == "__main__":
    main()
