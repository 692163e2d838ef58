"""Break the code in one of thousands of ways, again and again, and count what the fast tests notice: `make mutants`.

    ARGS='--of 100 --seed 2'        other hundred mutants than the usual sample
    ARGS='installer.flow.fit.*'     all mutants with such a name

mutmut makes the mutants and finds out which tests reach which function; which rooms and which tests stands in
pyproject.toml. Each mutant has a process of its own and the tests that reach it, the quickest first, until one fails.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import os
import random
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
ENOUGH = 0.85
TESTS_FOR = 30  # seconds of tests for one mutant at most: what only slower ones would notice counts as unnoticed
CALM = 15  # seconds of processor time beside three times what its tests take, before a mutant counts as endless
NOTICED, ENDLESS, SURVIVED, UNREACHED = "noticed", "endless", "survived", "reached by no test"
CONTROL = 10  # of so many noticed ones, one is tried once more with nothing broken


class Mutants:
    def __init__(self) -> None:
        """Made in mutants/, a copy of the checkout; what is there of an earlier run is taken, where it still holds."""
        from mutmut import __main__ as mutmut
        from mutmut.runners.harness import PytestRunner

        mutmut.set_mutant_under_test("mutant_generation")
        (REPO / "mutants").mkdir(exist_ok=True)
        mutmut.copy_src_dir()
        mutmut.copy_also_copy_files()
        mutmut.setup_source_paths()
        mutmut.create_mutants(os.cpu_count() or 1)
        self.mutmut, self.tests = mutmut, PytestRunner()
        mutmut.collect_or_load_stats(mutmut.get_mutant_runner(1))
        mutmut.set_mutant_under_test("")
        self.names = sorted(name for _, name, _ in mutmut.collect_source_file_mutation_data(mutant_names=())[0])
        self.known: Any = mutmut.state()

    def reaching(self, name: str) -> tuple[list[str], float]:
        """The tests that reach a mutant, the quickest first, and how long they take."""
        function = self.mutmut.mangled_name_from_mutant_name(name)
        spans: dict[str, float] = self.known.duration_by_test
        chosen, span = list[str](), 0.0
        for test in sorted(self.known.tests_by_mangled_function_name.get(function, ()), key=lambda test: spans[test]):
            if chosen and span + spans[test] > TESTS_FOR:
                break
            chosen.append(test)
            span += spans[test]
        return chosen, span

    def fate(self, name: str, broken: str) -> str:
        """What becomes of the tests that reach `name` where `broken` is broken, or nothing is."""
        tests, span = self.reaching(name)
        if not tests:
            return UNREACHED
        seconds = math.ceil(3 * span + CALM)
        child = os.fork()
        if not child:
            self._run(broken, tests, seconds)
        until = time.monotonic() + 10 * seconds  # one that waits for something uses no processor
        while True:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > until:
                os.kill(child, 9)
                os.waitpid(child, 0)
                return ENDLESS
            time.sleep(0.02)
        code = os.waitstatus_to_exitcode(status)
        return SURVIVED if code == 0 else NOTICED if code > 0 else ENDLESS

    def _run(self, broken: str, tests: list[str], seconds: int) -> None:
        limit = seconds + math.ceil(time.process_time())
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        self.mutmut.set_mutant_under_test(broken)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        code = 2
        try:
            code = self.tests.run_tests(mutant_name=broken, tests=tests)
        finally:
            os._exit(code)

    def shown(self, name: str) -> str:
        lines = self.mutmut.get_diff_for_mutant(name).splitlines()
        return "\n".join(line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---"))


def interval(noticed: int, judged: int) -> tuple[float, float]:
    """In which the share of all mutants lies with 95 % certainty (Wilson)."""
    z, share = 1.96, noticed / judged
    middle = share + z * z / (2 * judged)
    spread = z * math.sqrt(share * (1 - share) / judged + z * z / (4 * judged * judged))
    return (middle - spread) / (1 + z * z / judged), (middle + spread) / (1 + z * z / judged)


def chosen(names: Sequence[str], patterns: Sequence[str], of: int, seed: int) -> list[str]:
    if patterns:
        return [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    return random.Random(seed).sample(names, min(of, len(names)))  # noqa: S311


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", type=int, default=300, help="how many mutants are tried (300)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("names", nargs="*", help="these instead of a sample")
    given = parser.parse_args(words)
    os.chdir(REPO)
    install = (sys.executable, "-m", "pip", "install", "--quiet", "--editable", ".[mutants]")
    subprocess.run(install, check=True)
    mutants = Mutants()
    tried = chosen(mutants.names, given.names, given.of, given.seed)
    mutants.tests.warm_up()
    fates = dict[str, str]()
    for number, name in enumerate(tried, 1):
        fates[name] = mutants.fate(name, name)
        print(f"{number}/{len(tried)} {fates[name]}: {name}", flush=True)
        if fates[name] not in (NOTICED, ENDLESS):
            print(mutants.shown(name), flush=True)
    noticed = [name for name, fate in fates.items() if fate == NOTICED]
    wrong = [name for name in noticed[::CONTROL] if mutants.fate(name, "") != SURVIVED]
    assert not wrong, f"these tests fail with nothing broken: {wrong}"
    counts = Counter(fates.values())
    found = counts[NOTICED] + counts[ENDLESS]
    low, high = interval(found, len(tried))
    Path("mutants/fates.json").write_text(json.dumps(fates, indent=1))
    print(f"{found} of {len(tried)} noticed (of {len(mutants.names)} mutants; seed {given.seed}): {dict(counts)}")
    print(f"{found / len(tried):.1%}, with 95 % certainty between {low:.1%} and {high:.1%}")
    return int(found < ENOUGH * len(tried))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
