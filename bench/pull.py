"""Pull: ours beside `snapshot_download`, curl, aria2c and the disk itself, against one local hub, in one run.

First a hub that gives what it can, then one that limits every connection, as mirrors do. A time ends when the bytes are
on the disk; ours has checked every one by then, the others none. Needs 10 GB of disk and 5 GB of memory for a while.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

REPO_DIR = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO_DIR))

from tests.kit.bulk_hub import REPO, bulk_hub  # noqa: E402

PLACE = REPO_DIR / "build/bench-pull"
SHARDS = ("512M",) * 8
ONE_FILE = ("4G",)
ONE_FILE_LIMITED = ("2G",)
LIMIT = 40e6  # bytes a second for each connection
ROUNDS = 2
OURS = """
import sys
from dataclasses import replace
from pathlib import Path
from installer.base.host import Host
from installer.base.layout import Layout
from installer.weights.models import changes, resolve
from installer.base.report import Report
from installer.spec.settings import Settings
settings = replace(Settings(), model=sys.argv[1], hf_endpoint=sys.argv[2])
host = Host(root=Path(sys.argv[3]))
for change in changes(resolve(settings, host, Layout("qwen3vl")), host, settings):
    change.apply(host, Report())
"""
THEIRS = """
import sys
from huggingface_hub import snapshot_download
snapshot_download(sys.argv[1], endpoint=sys.argv[2], cache_dir=sys.argv[3])
"""


def ours(url: str) -> None:
    run(sys.executable, "-c", OURS, REPO, url, str(PLACE))


def snapshot_download(url: str) -> None:
    run(sys.executable, "-c", THEIRS, REPO, url, str(PLACE))


def curl(url: str) -> None:
    """All files, one after the other, on one connection."""
    words = [word for at, name in links(url) for word in ("--output", str(PLACE / name), at)]
    run("curl", "--silent", "--show-error", "--fail", "--location", *words)


def aria2c(url: str) -> None:
    """Eight connections a file; several files at once where there are several."""
    words = ("aria2c", "-x8", "-s8", "-k1M", "--quiet", "--file-allocation=none", f"--dir={PLACE}", "--input-file=-")
    run(*words, stdin="".join(f"{at}\n  out={name}\n" for at, name in links(url)))


def disk(size: int) -> None:
    run("dd", "if=/dev/zero", f"of={PLACE}/zeros", "bs=1M", f"count={size >> 20}", "conv=fsync", "status=none")


def links(url: str) -> list[tuple[str, str]]:
    from huggingface_hub import HfApi, hf_hub_url

    names = [str(entry.rfilename) for entry in HfApi(endpoint=url).model_info(REPO).siblings or ()]
    return [(hf_hub_url(REPO, name, endpoint=url), name) for name in names]


def run(*argv: str, stdin: str = "") -> None:
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONPATH": str(REPO_DIR)}
    subprocess.run(argv, check=True, input=stdin.encode(), env={**os.environ, **quiet})


def timed(task: Callable[[], None]) -> float:
    """Seconds until the task has ended and all it wrote is on the disk; begun with nothing left to write."""
    with empty_place():
        os.sync()
        began = time.monotonic()
        task()
        run("sync", "--file-system", str(PLACE))
        return time.monotonic() - began


@contextmanager
def empty_place() -> Iterator[None]:
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir(parents=True)
    try:
        yield
    finally:
        shutil.rmtree(PLACE)


def compare(
    title: str, sizes: Sequence[str], rate: float, contestants: Sequence[Callable[[str], None]], rounds: int
) -> dict[str, float]:
    """Megabytes a second of each, the mean of the rounds, which go there and back."""
    size = sum(int(one[:-1]) << (30 if one[-1] == "G" else 20) for one in sizes)
    seconds: dict[str, list[float]] = {task.__name__: [] for task in contestants} | {"disk": []}
    print(f"\n{title}: {size / 1e9:.1f} GB", flush=True)
    with bulk_hub(sizes, rate) as url:
        for number in range(rounds):
            for task in contestants if number % 2 == 0 else tuple(reversed(contestants)):
                seconds[task.__name__].append(timed(lambda task=task: task(url)))  # type: ignore[misc]
            seconds["disk"].append(timed(lambda: disk(size)))
    speed = {name: size / statistics.mean(taken) / 1e6 for name, taken in seconds.items()}
    for name, taken in seconds.items():
        print(f"  {name:<18} {speed[name]:6.0f} MB/s   " + " ".join(f"{one:.1f}" for one in taken) + " s", flush=True)
    return speed


def ratio(text: str, value: float, wanted: float) -> bool:
    print(f"  {text}: {value:.2f} (wanted: {wanted:g})", flush=True)
    return value >= wanted


def main() -> int:
    good = []
    for title, sizes in (("8 shards", SHARDS), ("one file", ONE_FILE)):
        speed = compare(title, sizes, 0.0, (ours, snapshot_download, curl), ROUNDS)
        best = max(speed["snapshot_download"], speed["curl"])
        good.append(ratio("ours / the better of snapshot_download and curl", speed["ours"] / best, 0.95))
    limited = f"each connection limited to {LIMIT / 1e6:.0f} MB/s"
    speed = compare(f"8 shards, {limited}", SHARDS, LIMIT, (ours, aria2c, snapshot_download), 1)
    good.append(ratio("ours / aria2c -x8", speed["ours"] / speed["aria2c"], 0.9))
    speed = compare(f"one file, {limited}", ONE_FILE_LIMITED, LIMIT, (ours, aria2c), ROUNDS)
    good.append(ratio("ours / aria2c -x8", speed["ours"] / speed["aria2c"], 0.9))
    plain = compare(f"one file, {limited}", ONE_FILE_LIMITED, LIMIT, (snapshot_download,), 1)
    good.append(ratio("ours / snapshot_download", speed["ours"] / plain["snapshot_download"], 4))
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
