"""`vllm serve MODEL --flags`: the start-up of vLLM, told in its own log lines, without the model."""

import argparse
import asyncio
import importlib
import json
import logging
import logging.config
import os
import signal
import sys
import time
from pathlib import Path

from vllm import __version__, faults
from vllm.api_server import Application, Engine, EngineClient
from vllm.asgi import Server, start_up

log = logging.getLogger("vllm")
if faults.value("import") == "die":
    raise ImportError("a library is missing")
while faults.value("import") == "hang":
    time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(prog="vllm")
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    serve = verbs.add_parser("serve")
    serve.add_argument("model")
    serve.add_argument("--served-model-name", nargs="+")
    serve.add_argument("--lora-modules", nargs="+", default=[])
    serve.add_argument("--host", default="0.0.0.0")
    serve.add_argument("--port", type=int, default=8000)
    serve.add_argument("--max-model-len", default="4096")
    serve.add_argument("--shutdown-timeout", type=float, default=0)
    serve.add_argument("--middleware", action="append", default=[])
    serve.add_argument("--enable-auto-tool-choice", action="store_true")
    serve.add_argument("--tool-call-parser")
    serve.add_argument("--additional-config", dest="standin", default="")  # of vLLM's flags, one for any text
    serve.add_argument("--headless", action="store_true")
    arguments, others = parser.parse_known_args()
    if any(word.startswith("--no-such") for word in others):
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    os.environ["VLLM_STANDIN"] = f"{os.environ.get('VLLM_STANDIN', '')} {arguments.standin}"
    set_up_logging()
    # As vLLM does: deaf to SIGTERM until it serves.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        context = load(arguments)
    except ValueError as error:
        log.error("EngineCore failed to start.\nValueError: %s", error)
        sys.exit(1)
    asyncio.run(run(arguments, context))


def set_up_logging() -> None:
    configured = os.environ.get("VLLM_LOGGING_CONFIG_PATH")
    if configured:
        logging.config.dictConfig(json.loads(Path(configured).read_text()))
        return
    form = "%(levelname)s %(asctime)s [%(filename)s:%(lineno)d] %(message)s"
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format=form, datefmt="%m-%d %H:%M:%S")


def load(arguments: argparse.Namespace) -> int:
    """Everything up to a warm engine; returns the context length."""
    log.info("vLLM API server version %s", __version__)
    log.info("non-default args: %s", vars(arguments))
    log.info("Initializing a V1 LLM engine (v%s) with config: model=%r", __version__, arguments.model)
    stage("load", "Starting to load model %s...", arguments.model)
    time.sleep(faults.number("slow-start", 0))
    if faults.value("last-words") is not None:
        words = Path(os.environ["HOME"], "last-words").read_text()
        print(words, flush=True)
        if not words.startswith("INFO"):
            sys.exit(1)
    status = faults.value("die-at-start")
    if status is not None:
        log.error("RuntimeError: Engine core initialization failed. See root cause above.")
        sys.exit(int(status or 1))
    log.info("Model loading took 0.01 GiB memory and 0.02 seconds")
    stage("compile", "torch.compile takes 0.10 s in total")
    log.info("Available KV cache memory: 4.00 GiB")
    context = fit(arguments.max_model_len)
    log.info("GPU KV cache size: %s tokens", f"{context * 28:,}")
    log.info("Maximum concurrency for %s tokens per request: 28.00x", f"{context:,}")
    stage("capture", "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE)")
    log.info("Graph capturing finished in 1 secs, took 0.01 GiB")
    log.info("init engine (profile, create kv cache, warmup model) took 0.10 seconds")
    return context


def stage(name: str, message: str, *arguments: object) -> None:
    log.info(message, *arguments)
    while faults.value("stall") == name:
        time.sleep(0.1)


def fit(wanted: str) -> int:
    if wanted in ("auto", "-1"):
        return int(faults.number("auto-context", 4096))
    context = int(wanted)
    most = int(faults.number("refuse-context", context))
    if context > most:
        need = 4.0 * context / most
        raise ValueError(
            f"To serve at least one request with the model's max seq len ({context}), ({need:.2f} GiB KV cache is "
            "needed, which is larger than the available KV cache memory (4.0 GiB). Based on the available memory, the "
            f"estimated maximum model length is {most}. Try increasing `gpu_memory_utilization` or decreasing "
            "`max_model_len` when initializing the engine."
        )
    return context


async def run(arguments: argparse.Namespace, context: int) -> None:
    engine = Engine()
    await engine.start()
    log.info("(EngineCore pid=%d) engine is ready", engine.pid)
    if arguments.headless:
        await engine.died.wait()
        logging.shutdown()
        os._exit(0)  # as vLLM does, whatever has happened
    planted = faults.value("model-name")
    names = [planted] if planted else arguments.served_model_name or [arguments.model]
    names = [*names, *(module.partition("=")[0] for module in arguments.lora_modules)]
    application = Application(engine, names, context, calls_tools=arguments.enable_auto_tool_choice)
    for name in arguments.middleware:
        module, _, attribute = name.rpartition(".")
        application = getattr(importlib.import_module(module), attribute)(application)
    server = Server(application)
    await start_up(application, EngineClient(engine))
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await server.listen(arguments.host, arguments.port)
    log.info("Starting vLLM server on http://%s:%d", arguments.host, arguments.port)
    log.info("Application startup complete.")
    waiting = [asyncio.ensure_future(stop.wait())]
    if os.environ.get("VLLM_KEEP_ALIVE_ON_ENGINE_DEATH", "0") == "0":
        waiting.append(asyncio.ensure_future(engine.died.wait()))
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    if engine.died.is_set():
        # vLLM, too, ends with status 0 when its engine dies.
        log.error("EngineCore died unexpectedly, shutting down.")
    await server.drain(0 if engine.died.is_set() else arguments.shutdown_timeout)
    engine.kill()
    log.info("Application shutdown complete.")
    logging.shutdown()
    os._exit(0)


if __name__ == "__main__":
    main()
