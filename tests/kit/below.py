"""`python -m tests.kit.below ROOT`: command lines, a JSON list in each line, run on the host below ROOT.

Each in a process that begins where all modules are there already, so that hundreds take seconds; each answer is JSON:
the exit status, and what was said on stdout and stderr.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path

from installer import cli
from installer.base.host import Host
from installer.diagnosis import bug_report, doctor  # noqa: F401  with what is imported only when it is used
from installer.flow import adopt, eject, rotate  # noqa: F401
from installer.look import client, screen, status  # noqa: F401

PATIENCE = 300  # seconds; what waits for longer waits for ever


def run(words: list[str]) -> tuple[int, str, str]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        if not (pid := os.fork()):
            signal.alarm(PATIENCE)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            os._exit(_exit_code(words))
        _, status = os.waitpid(pid, 0)
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode())
        return os.waitstatus_to_exitcode(status), said[0], said[1]


def _exit_code(words: list[str]) -> int:
    sys.argv = ["vllm-install", *words]
    code = 0
    try:
        cli.main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    Host.__init__.__defaults__ = (Path(sys.argv[1]),)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
