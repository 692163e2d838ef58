"""How an engine is started: its command line, its environment, and the configuration of its log. Stdlib only."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING or __package__:
    from installer.runtime.vllm_seen import PROBE
    from installer.runtime.vllm_words import SGLANG, Words
else:
    from vllm_seen import PROBE
    from vllm_words import SGLANG, Words

# Secrets, and what would let vLLM speak to systemd in the watcher's place.
KEPT_FROM_VLLM = (
    "VLLM_API_KEY", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "CREDENTIALS_DIRECTORY",
    "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES",
)  # fmt: skip


def engine(serve: list[str], of: Words, flags: Mapping[str, str], runtime: str) -> dict[str, object]:
    """What is started: its command, its environment, and the files that it reads in the runtime directory."""
    here = os.path.dirname(os.path.abspath(__file__))
    environment = {name: value for name, value in os.environ.items() if name not in KEPT_FROM_VLLM}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    if "--allowed-media-domains" not in flags:
        # An empty list would let anyone have this host fetch any address; the name is one that never exists.
        serve = [*serve, "--allowed-media-domains", "none.invalid"]
    prepare = as_sglang if of is SGLANG else as_vllm
    words, files = prepare(serve, flags, environment, runtime)
    # -P: a folder of the engine's name in the working directory must not take its place.
    safe = ["-P"] if sys.version_info >= (3, 11) else []
    command = [sys.executable, *safe, os.path.join(here, of.program), *words]
    return {"command": command, "environment": environment, "files": {"stages": "", **files}, "family": serve[0]}


def as_vllm(
    serve: list[str], flags: Mapping[str, str], environment: dict[str, str], runtime: str
) -> tuple[list[str], dict[str, str]]:
    """Its words and files, and what is added to its environment."""
    files = {}
    environment["VLLM_USE_RUST_FRONTEND"] = "0"
    # Its engine dead, vLLM would exit 0, as if asked to. So it stays, and the watcher ends it by a signal.
    environment["VLLM_KEEP_ALIVE_ON_ENGINE_DEATH"] = "1"
    if flags.keys().isdisjoint(("--log-config-file", "--logging-config")):
        environment.setdefault("VLLM_LOGGING_CONFIG_PATH", os.path.join(runtime, "logging.json"))
        files["logging.json"] = json.dumps(log_configuration(runtime, flags))
    # The unit's own words are the same on all hosts of a group but for its rank.
    headless = ["--headless"] if os.environ.get("GROUP_RANK", "0") != "0" else []
    return [*serve, "--middleware", "vllm_guard.Guard", *headless], files


def as_sglang(
    serve: list[str], flags: Mapping[str, str], environment: dict[str, str], runtime: str
) -> tuple[list[str], dict[str, str]]:
    """The same of SGLang, whose own warm-up asks without a key, and ends it when that is refused."""
    environment.setdefault("SGLANG_LOGGING_CONFIG_PATH", os.path.join(runtime, "logging.json"))
    # Else whoever asks for /health, without a key, has it make a token.
    environment["SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION"] = "false"
    environment["SGLANG_PLUGINS"] = "none"  # of the packages that it comes with, two add servers that take no guard
    files = {"logging.json": json.dumps(sglang_log_configuration(runtime))}
    return [*serve[1:], "--skip-server-warmup", "--enable-metrics"], files


def log_configuration(runtime: str, flags: Mapping[str, str]) -> dict[str, object]:
    """vLLM's and uvicorn's usual logs; besides, the stages go into a file and the probes nowhere."""
    level = os.environ.get("VLLM_LOGGING_LEVEL", "INFO")
    quiet = flags.get("--disable-access-log-for-endpoints", "").split(",")
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "vllm": {"()": "vllm_log.vllm_formatter"},
            "uvicorn": {"format": "%(levelname)s:     %(message)s"},
        },
        "filters": {"quiet": {"()": "vllm_log.QuietAccess", "paths": [PROBE, "/health", "/metrics", *quiet]}},
        "handlers": {
            "vllm": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "vllm"},
            "uvicorn": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "uvicorn"},
            "stages": {"()": "vllm_log.Stages", "path": os.path.join(runtime, "stages")},
        },
        "loggers": {
            "vllm": {"handlers": ["vllm", "stages"], "level": level, "propagate": False},
            "uvicorn": {"handlers": ["uvicorn", "stages"], "level": "INFO", "propagate": False},
            "uvicorn.access": {"filters": ["quiet"], "level": "INFO"},
        },
    }


def sglang_log_configuration(runtime: str) -> dict[str, object]:
    """Its usual log with a level in each line, for every one of its processes; and as vLLM's, stages and probes."""
    stages = "|".join(re.escape(words) for words, _ in SGLANG.stages)
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"plain": {"format": "%(levelname)s %(asctime)s [%(name)s] %(message)s"}},
        "filters": {"quiet": {"()": "vllm_log.QuietAccess", "paths": [PROBE, "/health", "/metrics"]}},
        "handlers": {
            "plain": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "plain"},
            "stages": {"()": "vllm_log.Stages", "path": os.path.join(runtime, "stages"), "telling": stages},
        },
        "root": {"handlers": ["plain", "stages"], "level": "INFO"},
        "loggers": {
            "uvicorn.access": {"filters": ["quiet"], "level": "INFO"},
            "httpx": {"level": "WARNING"},
            "httpcore": {"level": "WARNING"},
        },
    }
