"""Stands above vLLM: has the socket that callers wait on, all processes of the engine, and ends as the engine ends.

    vllm_supervisor.py TASK    a descriptor with what the launcher laid out, as JSON

It is the unit's main process, so what systemd does to it is done to the engine. For a change another one is started
beside it, with the next engine, which takes its place once that engine has answered (vllm_handover.py). Stdlib only.

    vllm_supervision.py   an engine and its watcher          vllm_main.py        the unit's main process
    vllm_callers.py       those who wait for an engine       vllm_successor.py   the next one, until it is that
    vllm_member.py        one of several hosts that serve one model together
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING or __package__:
    from installer.runtime.vllm_main import Main
    from installer.runtime.vllm_member import Follower, Head
    from installer.runtime.vllm_successor import Successor
else:
    from vllm_main import Main
    from vllm_member import Follower, Head
    from vllm_successor import Successor

SET_CHILD_SUBREAPER = 36


def main(words: list[str]) -> NoReturn:
    # What loses its parent becomes our child, so that nothing of the engine is out of reach.
    ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    task = json.loads(os.pread(int(words[0]), 1 << 24, 0))
    if group := task.get("group"):
        (Follower if group["rank"] else Head)(task).run()
    (Successor if "predecessor" in task else Main)(task).run()


if __name__ == "__main__":
    main(sys.argv[1:])
