"""Writes docs/gpu-faults.md from the table of faults: `python -m scripts.gpu_faults`."""

from __future__ import annotations

from pathlib import Path

from installer.diagnosis.gpu_faults import DECISIONS, Fault, faults

PAGE = Path(__file__).parents[1] / "docs/gpu-faults.md"
HEAD = """# When a GPU fails

<!-- Made by `make docs` from installer/data/gpu_faults.json: edit that. -->

`sudo vllm-install doctor` says which of these it is, of which GPU, and the command. It asks the driver for each GPU's
state, and reads what the kernel said since the service last changed its state (a day, where it does not run); of the
GPUs that the service was given, and of those of which nobody can say whose they are. The numbers are [NVIDIA's
Xids](https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html), the decisions follow that catalogue and its
rules for memory errors.

## A start that cannot succeed

At each start the driver is asked once more, in the service's sandbox and for 10 s at most. The start is refused, with
the reason in `systemctl status` and without another try, where
- a GPU that the service was given is not there any more, or does not answer;
- the driver says that it needs a reset, or the host a restart (its *recovery action*, drivers from 570 on);
- `nvidia-uvm` gave up: then nothing can use CUDA, while `nvidia-smi` looks healthy.

It is not refused for rows that wait to be remapped: NVIDIA lets new work begin there, and `doctor` notes them. Nor for
a driver that does not answer at all, or is not loaded yet: that is a line in the journal. After the cause is gone:
`sudo systemctl start NAME`. With replicas each asks for its own GPUs, and the others go on.

## Figures

The collector of `monitor` has for each GPU: memory, use, power and its limit, energy, temperatures, clocks and why
they are low, errors of the memory and rows that were replaced, repeated transfers on the bus, errors of NVLink, and how
often the driver reported which Xid since the host started. Energy divided by tokens is what an answer costs:

    sum by (service) (vllm_install_gpu_used_by
      * on (instance, uuid) group_left () rate(vllm_install_gpu_energy_joules_total[5m]))
    / sum by (service) (rate(vllm:generation_tokens_total[5m]))

What a driver does not tell has no row. A driver that hangs costs the rows of that GPU and those after it;
`vllm_install_gpus_readable` is 0 then, with the reason beside it in the file, and no second question is asked before
the first has ended ([why so](decisions/0036-a-driver-is-asked-by-a-child.md)). A host without GPUs has none of these
rows. Of AMD's GPUs there is what `/sys` shows: no energy, no clocks' reasons, no Xid. Errors of NVLink are not counted
on Blackwell, whose driver counts in another way. Slices (MIG) are not told apart.

Not yet seen on a real GPU: `bench/gpu/figures.py` compares them with `nvidia-smi`'s.

## What is decided

"""


def page() -> str:
    decisions = {fault.decision.name: fault.decision for fault in faults()}
    rows = "".join(f"| {n} | {decisions[n].means} | `{_command(decisions[n].commands[0])}` |\n" for n in DECISIONS)
    return HEAD + "| | | |\n|---|---|---|\n" + rows + "\n## The faults\n" + "".join(map(_section, faults()))


def _command(text: str) -> str:
    return text.format(unit="qwen3vl", service="qwen3vl", gpu="GPU-…", watts="700")


def _section(fault: Fault) -> str:
    note = ", a note" if fault.severity == "note" else ""
    known = f"Xid {', '.join(map(str, fault.xids))}. " if fault.xids else ""
    cause = fault.cause.replace("{xid}", "*N*").replace("{gpu}", "*address*")
    lines = "".join(f"    # {example.line}\n" for example in fault.examples[:1])
    said = f"{cause[0].upper()}{cause[1:]}. {known}Decision: **{fault.decision.name}**{note}."
    return f"\n### {fault.id}\n\n{said}\n\n{lines}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
