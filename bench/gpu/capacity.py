"""Capacity: what is predicted for a model's memory beside what vLLM reports, with dummy weights.

Usage: python bench/gpu/capacity.py [--budget SECONDS] [--context N] [--share X] [DIRECTORY[@SHARE]…]

Each directory holds a config.json and an index with the size of the weights (tests/fixtures/configs by default); no
weights and no hub are needed. Runs with the Python that has vLLM, one server after the other, and needs nothing else.

Each start is a first start, with empty caches, and ends as soon as vLLM has said how much cache it has. Neither
compiling nor measuring the CUDA graphs can be left out: both take memory that vLLM counts. FlashInfer's sampler and
DeepGEMM are off unless the environment says otherwise, as in a service on a host without a CUDA toolkit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

from installer.families.vllm.log import read_refusal, read_report  # noqa: E402
from installer.memory.capacity import Estimate, estimate  # noqa: E402
from installer.memory.device import Device  # noqa: E402
from installer.memory.shape import read_shape  # noqa: E402
from installer.model import builtin  # noqa: E402
from installer.spec.calibration import Calibration  # noqa: E402
from installer.spec.settings import Settings  # noqa: E402

GIB = 1024**3
FIXTURES = REPO / "tests/fixtures/configs"
LAST_WORD = "Maximum concurrency for"
LATE = "no time left before vLLM reported"
STOP_SECONDS = 10.0
# As in a service on a host without a CUDA toolkit.
WITHOUT_TOOLKIT = {"VLLM_USE_FLASHINFER_SAMPLER": "0", "VLLM_USE_DEEP_GEMM": "0", "VLLM_MOE_USE_DEEP_GEMM": "0"}
# Special tokens of processors, in place of the small tokenizer's reserved ones; config fields that name them.
TOKENS = {
    "<|image_pad|>": ("image_token_id",),
    "<|video_pad|>": ("video_token_id",),
    "<|vision_start|>": ("vision_start_token_id",),
    "<|vision_end|>": ("vision_end_token_id",),
    "<start_of_image>": ("boi_token_index",),
    "<end_of_image>": ("eoi_token_index",),
    "<image_soft_token>": ("image_token_index",),
}
# Widths that change the weights and nothing about the cache.
NARROW = {
    "intermediate_size": 128, "moe_intermediate_size": 64, "shared_intermediate_size": 64, "vocab_size": 320,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "experts_per_token": 2,
    "n_group": 1, "topk_group": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    directory: Path
    share: float


@dataclass(frozen=True)
class Run:
    case: Case
    seconds: float
    predicted: Estimate | None = None  # None where not even the configuration could be read
    reported: Calibration | None = None
    failure: str = ""

    @property
    def off(self) -> float | None:
        """By which part of what vLLM reported the prediction differs from it."""
        return self.predicted.kv_tokens / self.reported.tokens - 1 if self.predicted and self.reported else None

    def to_json(self) -> dict[str, object]:
        return {
            "name": self.case.directory.name,
            "share": self.case.share,
            "predicted": self.predicted.to_json() if self.predicted else None,
            "reported": asdict(self.reported) if self.reported else None,
            "off": self.off,
            "seconds": round(self.seconds, 1),
            "failure": self.failure,
        }


def main() -> int:
    options = parse()
    # Ended from outside, the server started here must end too.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    deadline = time.monotonic() + options.budget
    memory, name = (options.memory, "") if options.memory else ram() if options.kind == "cpu" else gpu()
    runs: list[Run] = []
    for text in options.cases or map(str, sorted(FIXTURES.iterdir())):
        case = case_of(text, options.share)
        left = min(deadline - time.monotonic() - STOP_SECONDS, options.most)
        if left < options.least:
            print(f"{text}: no time left", file=sys.stderr)
            continue
        runs.append(measure(case, Device(options.kind, memory, case.share, name), options, left))
        print(row(runs[-1]), flush=True)
        if options.json:
            options.json.write_text(json.dumps([run.to_json() for run in runs], indent=1) + "\n")
    print("\n".join(table(runs, options)))
    return 0 if runs and all(run.reported for run in runs) else 1


def case_of(text: str, share: float) -> Case:
    directory, _, number = text.rpartition("@")
    if re.fullmatch(r"0?\.\d+", number):
        return Case(Path(directory), float(number))
    return Case(Path(text), share)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="DIRECTORY[@SHARE]")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds for all servers together")
    parser.add_argument("--least", type=float, default=45.0, help="seconds below which no further server is started")
    parser.add_argument("--most", type=float, default=300.0, help="seconds for one server")
    parser.add_argument("--context", type=int, default=16384)
    parser.add_argument("--share", type=float, default=0.92, help="--gpu-memory-utilization where a case names none")
    parser.add_argument("--memory", type=int, default=0, help="bytes of one GPU, as nvidia-smi has them")
    parser.add_argument("--kind", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has vLLM")
    parser.add_argument("--narrow", action="store_true", help="shrink the weights, but nothing that the cache sees")
    parser.add_argument("--logs", type=Path, help="directory for vLLM's own output")
    parser.add_argument("--json", type=Path, help="file for the results as data")
    parser.add_argument("--flags", default="", help="further flags for vLLM, as in VLLM_ARGS")
    return parser.parse_args()


def measure(case: Case, device: Device, options: argparse.Namespace, seconds: float) -> Run:
    """One case; whatever goes wrong with it is its result, and the next one's turn comes."""
    started = time.monotonic()
    predicted = None
    with tempfile.TemporaryDirectory(prefix="capacity-") as place:
        try:
            model = Path(place) / case.directory.name
            prepare(case.directory, model, options.narrow)
            settings = Settings(
                model=str(model),
                max_model_len=options.context,
                gpu_memory_utilization=case.share,
                vllm_args=tuple(options.flags.split()),
                engine=device.kind,
            )
            predicted = estimate(read_shape(model, settings), device, settings)
            lines = serve(command(options.python, model, predicted.context, settings), Path(place), seconds)
            report = read_report(lines)
            why = "" if report else failure(lines)
            if options.logs:
                options.logs.mkdir(parents=True, exist_ok=True)
                (options.logs / f"{case.directory.name}@{case.share:g}.log").write_text("".join(lines))
        except Exception as error:
            report, why = None, f"{type(error).__name__}: {error}"
    if device.kind == "cuda":
        wait_for_memory(device.memory)
    return Run(case, time.monotonic() - started, predicted, report, why)


def command(python: str, model: Path, context: int, settings: Settings) -> list[str]:
    """Where a model takes less than was asked for, it is asked for that."""
    return [
        python, "-m", "vllm.entrypoints.cli.main", "serve", str(model),
        "--load-format", "dummy", "--max-model-len", str(context),
        "--gpu-memory-utilization", str(settings.gpu_memory_utilization),
        "--host", "127.0.0.1", "--port", str(free_port()),
        *settings.vllm_args,
    ]  # fmt: skip


def prepare(source: Path, model: Path, is_narrow: bool) -> None:
    """A model directory that vLLM starts from: configuration, a tokenizer of the right form, processors."""
    shutil.copytree(source, model)
    config = json.loads((model / "config.json").read_text())
    if is_narrow:
        narrow(config)
        (model / "model.safetensors.index.json").write_text('{"metadata": {"total_size": 200000000}}')
    tokenizer = json.loads(builtin.files()["tokenizer.json"])
    reserved = [token for token in tokenizer["added_tokens"] if token["content"].startswith("<|reserved")]
    ids: dict[str, int] = {}
    for (content, fields), token in zip(TOKENS.items(), reserved, strict=False):
        token["content"] = content
        ids |= dict.fromkeys(fields, token["id"])
    config |= {name: number for name, number in ids.items() if name in config}
    for section in (config, config.get("text_config", {})):
        section |= {name: 256 for name in ("bos_token_id", "eos_token_id", "pad_token_id") if name in section}
    (model / "config.json").write_text(json.dumps(config))
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = json.loads(builtin.files()["tokenizer_config.json"])
    settings |= {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    processors(config, model)


def narrow(config: dict[str, object]) -> None:
    for name, value in NARROW.items():
        if name in config:
            config[name] = value
    config.pop("quantization_config", None)


def processors(config: dict[str, object], model: Path) -> None:
    if config["model_type"] == "qwen3_vl":
        image = json.loads((model / "preprocessor_config.json").read_text())
        video = {
            **image,
            "size": {"longest_edge": 25165824, "shortest_edge": 4096},
            "video_processor_type": "Qwen3VLVideoProcessor",
        }
        (model / "video_preprocessor_config.json").write_text(json.dumps(video))
    if config["model_type"] == "gemma3":
        image = {
            "image_processor_type": "Gemma3ImageProcessor",
            "processor_class": "Gemma3Processor",
            "image_seq_length": 256,
            "size": {"height": 896, "width": 896},
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        }
        (model / "preprocessor_config.json").write_text(json.dumps(image))


def serve(command: list[str], place: Path, seconds: float) -> list[str]:
    """What vLLM says until it has told its cache's size or died; or, in a last line, that its time was up first."""
    environment = (
        WITHOUT_TOOLKIT
        | os.environ
        | {
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "VLLM_HOST_IP": "127.0.0.1",
            "FLASHINFER_WORKSPACE_BASE": str(place),
            "VLLM_CACHE_ROOT": str(place / "cache"),
            "TRITON_CACHE_DIR": str(place / "triton"),
            "TORCHINDUCTOR_CACHE_DIR": str(place / "inductor"),
        }
    )
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        cwd=place,
        start_new_session=True,
    )
    try:
        return list(until_told(process, time.monotonic() + seconds))
    finally:
        stop(process)


def until_told(process: subprocess.Popen[str], deadline: float) -> Iterator[str]:
    said: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            said.put(line)
        said.put("")

    threading.Thread(target=listen, daemon=True).start()
    while (left := deadline - time.monotonic()) > 0:
        try:
            line = said.get(timeout=left)
        except queue.Empty:
            break
        if not line:
            return
        yield line
        if LAST_WORD in line:
            return
    yield f"{LATE}\n"


def stop(process: subprocess.Popen[str]) -> None:
    """The whole session at once: vLLM is deaf to SIGTERM while it starts, and an engine left behind keeps memory."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for_memory(total: int) -> None:
    """The next server takes what is free when it starts for what others hold: this one's must be back by then."""
    deadline = time.monotonic() + STOP_SECONDS
    with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
        while query("memory.used") > total // 100 and time.monotonic() < deadline:
            time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def failure(lines: list[str]) -> str:
    refusal = read_refusal(lines)
    if refusal:
        return f"refused: {refusal}"
    if f"{LATE}\n" in lines:
        return LATE
    errors = [line.strip() for line in lines if "Error" in line and not re.search(r"\b(?:INFO|WARNING)\b", line)]
    return (errors or [line.strip() for line in lines] or ["it said nothing"])[-1][-300:]


def ram() -> tuple[int, str]:
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemTotal"].split()[0]) * 1024, ""


def gpu() -> tuple[int, str]:
    name = ask("name")
    return query("memory.total"), name


def query(field: str) -> int:
    return int(ask(field)) * 1024**2


def ask(field: str) -> str:
    words = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[0].strip()


def row(run: Run) -> str:
    predicted, reported = run.predicted, run.reported
    name = f"| {run.case.directory.name} | {run.case.share:g} |"
    if predicted is None or reported is None:
        return f"{name} {predicted.kv_tokens if predicted else '–'} | {run.failure} |"
    # The overhead that vLLM found is what remains of its share.
    other = predicted.weights + predicted.overhead + predicted.available_kv - reported.weights - reported.available
    cells = [
        f"{predicted.context}",
        f"{predicted.weights / GIB:.2f} / {reported.weights / GIB:.2f}",
        f"{predicted.overhead / GIB:.2f} / {other / GIB:.2f}",
        f"{reported.graphs / GIB:.2f}",
        f"{predicted.available_kv / GIB:.2f} / {reported.available / GIB:.2f}",
        f"{predicted.kv_tokens}",
        f"{reported.tokens}",
        f"{run.off:+.1%}",
        exact(predicted, reported),
        f"{run.seconds:.0f}",
    ]
    return f"{name} {' | '.join(cells)} |"


def exact(predicted: Estimate, reported: Calibration) -> str:
    """Tokens by our layout for exactly the memory vLLM had: its report rounds to 0.01 GiB, hence the range."""
    cache, half = predicted.cache, GIB // 200
    low, high = (cache.tokens(reported.available + part, reported.context) for part in (-half, half))
    return f"{'yes' if low <= reported.tokens <= high else 'NO'} ({low}–{high})"


def table(runs: list[Run], options: argparse.Namespace) -> list[str]:
    """All rows once more, as capacity.md has them."""
    worst = max((abs(run.off) for run in runs if run.off is not None), default=None)
    columns = (
        "model", "share", "context", "weights", "other", "graphs", "cache", "tokens predicted", "reported",
        "difference", "layout", "seconds",
    )  # fmt: skip
    return [
        f"flags {options.flags!r}; GiB are predicted / reported; graphs: those captured while measuring; layout: the"
        " tokens that our layout gives for the memory vLLM reported, whose last digit is rounded",
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
        *map(row, runs),
        f"{sum(run.off is not None for run in runs)} of {len(runs)} measured"
        + (f", at worst {worst:.1%} off" if worst is not None else ""),
    ]


if __name__ == "__main__":
    raise SystemExit(main())
