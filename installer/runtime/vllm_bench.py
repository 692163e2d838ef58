"""Runs vLLM's own `vllm bench serve`, one step of a ladder after the other, in one process: vLLM is imported once.

Whoever starts this holds the other end of its standard input, and writes lines of JSON there: this text, the task, and
then a step at a time. When that end is closed, by the death of its holder as well, this ends. The key comes by that
pipe alone: it is in no argument, no environment and no file.

    in:  {"key": KEY, "certificate": PEM or null, "words": [WORD...]}, then [WORD...] for each step
    out: {"ready": true}, then {"result": {...}} or {"error": WORDS} for each step
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import ssl
import tempfile
import threading
from collections.abc import Callable
from typing import Any

LONGEST_WORDS = 400  # characters of an error
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "",  # it asks a server, and needs no GPU
    "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "TOKENIZERS_PARALLELISM": "false",
}  # fmt: skip


def lines_of(home: str) -> queue.Queue[Any]:
    """What comes by our input, as it comes; its end is ours, also in the middle of a step."""
    found: queue.Queue[Any] = queue.Queue()
    source = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115 it is read until we end

    def read() -> None:
        while line := source.readline():
            found.put(json.loads(line))
        shutil.rmtree(home, ignore_errors=True)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return found


def only(certificate: str) -> ssl.SSLContext:
    """For the server with this very certificate, by whatever name it is asked, and for no other."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    end = "-----END CERTIFICATE-----"
    context.load_verify_locations(cadata=certificate.partition(end)[0] + end)
    return context


def let_in(key: str, certificate: str | None) -> None:
    """Every request has the key, those that vLLM would send without one too: the guard would note each as a stranger.

    No proxy, for the server is on this host.
    """
    import aiohttp  # type: ignore[import-not-found]

    session, connector = aiohttp.ClientSession, aiohttp.TCPConnector
    trust = only(certificate) if certificate else None

    def with_key(**more: Any) -> aiohttp.ClientSession:
        return session(**{**more, "headers": {"Authorization": f"Bearer {key}"}, "trust_env": False})

    def with_trust(**more: Any) -> aiohttp.TCPConnector:
        # Its care for connections that a server cut off fails itself at the end, and takes the figures with it.
        return connector(**{**more, "ssl": trust, "enable_cleanup_closed": False} if trust else more)

    aiohttp.ClientSession, aiohttp.TCPConnector = with_key, with_trust


def measure(serve: Any, words: list[str]) -> dict[str, object]:
    """The figures of one run, and what the first request said that was not answered."""
    parser = serve.FlexibleArgumentParser()
    serve.add_cli_args(parser)
    found = serve.main(parser.parse_args(words))
    errors = [str(error) for error in found.get("errors") or () if error]
    figures = {name: value for name, value in found.items() if isinstance(value, (int, float, str))}
    return {**figures, "error": last_line(errors[0]) if errors else ""}


def last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1][:LONGEST_WORDS]


def run(task: dict[str, Any], steps: queue.Queue[Any], say: Callable[[dict[str, object]], None]) -> None:
    let_in(task["key"], task["certificate"])
    from vllm.benchmarks import serve  # type: ignore[import-not-found]

    say({"ready": True})
    while True:
        try:
            result = measure(serve, [*task["words"], *steps.get()])
        except (Exception, SystemExit) as error:
            say({"error": last_line(f"{type(error).__name__}: {error}")})
        else:
            say({"result": result})


def main() -> None:
    channel = os.dup(1)  # what vLLM prints goes where its log does
    os.dup2(2, 1)
    home = tempfile.mkdtemp(prefix="vllm-install-bench-")
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]
    os.environ.update(ENVIRONMENT, HOME=home, TMPDIR=home)
    os.chdir(home)

    def say(what: dict[str, object]) -> None:
        os.write(channel, b"\n" + json.dumps(what).encode() + b"\n")

    lines = lines_of(home)
    try:
        run(lines.get(), lines, say)
    except Exception as error:
        say({"error": last_line(f"{type(error).__name__}: {error}")})
    finally:
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
