"""Hooks into vLLM's log, in all of its processes: stages for the watcher, and no line for each probe.

They are named in the configuration of its log (vllm_command.py). Stdlib only, as all that runs on the engine's Python.
"""

from __future__ import annotations

import logging
import os
import re

# What the watcher wants to know of vLLM's log; raw lines, so that their meaning is told in one place, the launcher.
TELLING = re.compile(
    r"Initializing a V1 LLM engine|Starting to load model|Model loading took|Loading weights took|torch\.compile"
    r"|Warming up model|KV cache size|Capturing|Graph capturing finished|Starting vLLM|Application startup complete"
)


class Stages(logging.Handler):
    """Copies the telling lines of vLLM's log into a file that stays small."""

    LIMIT = 64 * 1024

    def __init__(self, path: str, telling: str = TELLING.pattern) -> None:
        super().__init__(logging.INFO)
        self.path, self.telling = path, re.compile(telling)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
            if record.exc_info and record.exc_info[1]:
                text = f"{type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
            if record.levelno < logging.ERROR and not self.telling.search(text):
                return
            line = f"{record.levelname} {text.strip().rpartition(chr(10))[2][:400]}\n"
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if os.fstat(file).st_size < self.LIMIT:
                    os.write(file, line.encode(errors="replace"))
            finally:
                os.close(file)
        except Exception:
            return  # a log hook must never disturb the server


class QuietAccess(logging.Filter):
    """Drops successful probes from the access log: they would be most of the journal."""

    def __init__(self, paths: list[str]) -> None:
        super().__init__()
        self.paths = frozenset(paths)

    def filter(self, record: logging.LogRecord) -> bool:
        arguments = record.args
        if not isinstance(arguments, tuple) or len(arguments) != 5:
            return True
        return not (arguments[4] == 200 and arguments[2] in self.paths)


def vllm_formatter() -> logging.Formatter:
    """The formatter that this version of vLLM would have used by itself."""
    from logging.config import DictConfigurator

    try:
        from vllm.logger import DEFAULT_LOGGING_CONFIG  # type: ignore[import-not-found]
    except ImportError:
        return logging.Formatter("%(levelname)s %(asctime)s [%(filename)s:%(lineno)d] %(message)s", "%m-%d %H:%M:%S")
    made = DictConfigurator({"version": 1}).configure_formatter(dict(DEFAULT_LOGGING_CONFIG["formatters"]["vllm"]))
    assert isinstance(made, logging.Formatter)
    return made
