"""What the first start of the real vLLM compiles, which takes longer than all else that it does: kept for later ones.

Torch finds it by its content: where a model or an engine differs, it compiles as ever.
"""

from __future__ import annotations

import shutil

from tests.kit.boot.machine import Machine
from tests.kit.boot.surroundings import REPO, free_port
from tests.kit.memory import share

COMPILED = REPO / "build/compiled"  # a folder for each engine
SERVICE = "qwen3vl.service"
UNITS = "/etc/systemd/system"
CACHE = "/var/cache/qwen3vl"
# Not earlier than the engine's unit, for a deploy refuses a cache that is there already; systemd gives it to its user.
UNIT = """
[Unit]
Before={unit}
ConditionPathExists=!{cache}
[Service]
Type=oneshot
ExecStart=mkdir --parents {cache}/inductor
ExecStart=sh -c "cp --recursive {compiled}/*/. {cache}/inductor"
"""


def keep(machine: Machine, engine: str) -> None:
    """Deploy the engine, which the machine has, unless this was done before."""
    if (COMPILED / engine).exists():
        return
    options = ("--model", "builtin:tiny", "--engine", "cpu", "--gpu-memory-utilization", share())
    machine.cli("deploy", *options, "--port", str(free_port()), timeout=600)
    fresh = shutil.copytree(machine.at(CACHE) / "inductor", COMPILED.with_name(f"compiled.{machine.name}"))
    COMPILED.mkdir(exist_ok=True)
    fresh.rename(COMPILED / engine)


def give(machine: Machine, unit: str = SERVICE) -> None:
    """Have the service of this machine, which is to be deployed, begin with it: the unit that its engine is in."""
    machine.write(f"{UNITS}/compiled.service", UNIT.format(unit=unit, cache=CACHE, compiled=COMPILED))
    wants = f"{UNITS}/{unit}.wants"
    machine.shell(f"mkdir {wants}; ln -s ../compiled.service {wants}; systemctl daemon-reload")
