"""The openai package as clients have it: today's, in an environment of its own, configured by variables alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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
    """Installed once, kept in build/; nothing of ours needs it."""
    done = HOME / "bin/.has-openai"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", HOME], check=True)
        subprocess.run([HOME / "bin/python", "-m", "pip", "install", "--quiet", "openai"], check=True)
        done.touch()
    return HOME / "bin/python"


def ask(variables: str, scratch: Path) -> str:
    """What a chat is answered by whom these variables lead to, sourced by a shell as people do."""
    file = scratch / "env"
    file.write_text(variables)
    script = ("sh", "-euc", 'set -a; . "$1"; exec "$2" -c "$3"', "sh", file, interpreter(), ASKS)
    plain = {"PATH": os.environ["PATH"], "HOME": str(scratch), "NO_PROXY": "*"}
    return subprocess.run(script, env=plain, capture_output=True, text=True, check=True).stdout
