"""How long `vllm-install --help` takes beside Python with click alone, in one run."""

import statistics
import subprocess
import sys
import time

ROUNDS = 20
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "python -c 'import click'": [sys.executable, "-c", "import click"],
    "vllm-install --help": [sys.executable, "-m", "installer", "--help"],
    "vllm-install deploy --help": [sys.executable, "-m", "installer", "deploy", "--help"],
}


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):  # interleaved, so that a busy moment hits all of them
        for name, command in COMMANDS.items():
            times[name].append(seconds(command))
    medians = {name: statistics.median(values) for name, values in times.items()}
    peer = medians["python -c 'import click'"]
    for name, median in medians.items():
        print(f"{name:<28} {median * 1000:6.0f} ms  {median / peer:5.2f} x click")


if __name__ == "__main__":
    main()
