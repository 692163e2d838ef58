"""The engine process: takes requests as JSON lines on stdin, gives tokens as JSON lines on stdout.

Runs as a script under the name VLLM::EngineCore, so that tests stop, kill and look for it as they would the real one.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from vllm import faults

WORDS = ("The", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog")


def answer(request: dict[str, int], write: threading.Lock) -> None:
    if faults.value("die-on-completion") is not None:
        os.kill(os.getpid(), signal.SIGILL)
        threading.Event().wait()  # another thread may take the signal, and this one must not answer meanwhile
    for index in range(request["max_tokens"] + 1):
        while faults.value("hang") is not None:
            time.sleep(0.1)
        time.sleep(faults.number("token-seconds", 0))
        done = index == request["max_tokens"]
        token = None if done else WORDS[index % len(WORDS)] + " "
        with write:
            print(json.dumps({"id": request["id"], "token": token}), flush=True)


def main() -> None:
    # The API server decides when to end; a signal to the whole group must not break the answers being drained.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    write = threading.Lock()
    for line in sys.stdin:
        threading.Thread(target=answer, args=(json.loads(line), write), daemon=True).start()


main()
