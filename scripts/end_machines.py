"""End the machines that `make demo KEEP=1` left running, and remove what killed test runs left behind."""

from __future__ import annotations

import psutil

from tests.kit.boot.machine import has_owner, running, sweep


def main() -> None:
    for name, pid in running().items():
        if has_owner(name):
            print(f"{name} is in use by a running test or demo; left alone")
            continue
        outermost = psutil.Process(pid)
        tree = [outermost, *outermost.children(recursive=True)]
        outermost.kill()
        psutil.wait_procs(tree, timeout=30)
        print(f"ended {name}")
    sweep()


if __name__ == "__main__":
    main()
