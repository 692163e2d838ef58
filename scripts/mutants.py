"""Break the code in thousands of ways and count what the fast tests notice: `make mutants [ARGS='installer.flow.*']`.

Which rooms, and which tests, stands in pyproject.toml. Survivors: `mutmut results`, and `mutmut show NAME` for one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
ENOUGH = 0.85


def main(names: list[str]) -> int:
    mutmut = Path(sys.executable).with_name("mutmut")
    install = (sys.executable, "-m", "pip", "install", "--quiet", "--editable", ".[mutants]")
    subprocess.run(install, cwd=REPO, check=True)
    subprocess.run([mutmut, "run", *names], cwd=REPO, check=True)
    subprocess.run([mutmut, "export-cicd-stats"], cwd=REPO, check=True)
    counted = json.loads((REPO / "mutants/mutmut-cicd-stats.json").read_text())
    noticed = counted["killed"] + counted["timeout"] + counted["segfault"]
    judged = noticed + counted["survived"] + counted["no_tests"] + counted["suspicious"]
    print(f"{noticed} of {judged} mutants noticed: {noticed / judged:.1%}")
    return int(noticed < ENOUGH * judged)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
