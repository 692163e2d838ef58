"""The openai package as clients have it: today's, in an environment of its own, configured by variables alone."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

from installer.base.host import Host
from installer.forms.venv.pipconf import read_sources
from installer.forms.venv.uv import run_uv
from installer.spec.settings import Settings
from tests.kit.boot.surroundings import REPO

HOME = REPO / "build/openai"
ASKS = """
import os
from openai import OpenAI
answer = OpenAI().chat.completions.create(
    model=os.environ["AGENT_MODEL"], messages=[{"role": "user", "content": "Hello"}], max_tokens=8
)
print(answer.choices[0].message.content)
"""


def interpreter() -> Path:
    """Installed once, by whichever process of the tests is first, and kept in build/; nothing of ours needs it."""
    HOME.mkdir(parents=True, exist_ok=True)
    with (HOME / ".installing").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done, python = HOME / ".has-openai", HOME / "venv/bin/python"
        if not done.exists():
            shutil.rmtree(HOME / "venv", ignore_errors=True)
            host, cache = Host(), HOME / "cache"
            run_uv(host, cache, "venv", "--no-project", "--python", sys.executable, HOME / "venv")
            sources = read_sources(host, Settings(), os.environ)
            run_uv(host, cache, "pip", "install", "--python", python, "openai", sources=sources)
            done.touch()
    return python


def ask(variables: str, scratch: Path) -> str:
    """What a chat is answered by whom these variables lead to, sourced by a shell as people do."""
    file = scratch / "env"
    file.write_text(variables)
    script = ("sh", "-euc", 'set -a; . "$1"; exec "$2" -c "$3"', "sh", file, interpreter(), ASKS)
    plain = {"PATH": os.environ["PATH"], "HOME": str(scratch), "NO_PROXY": "*"}
    return subprocess.run(script, env=plain, capture_output=True, text=True, check=True).stdout
