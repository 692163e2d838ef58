"""Writes docs/troubleshoot.md from the table of signatures: `python -m scripts.troubleshoot`."""

from __future__ import annotations

from pathlib import Path

from installer.diagnosis.finding import NOTE
from installer.diagnosis.signatures import Signature, signatures

PAGE = Path(__file__).parents[1] / "docs/troubleshoot.md"
HEAD = """# When something is wrong

<!-- Made by `make docs` from installer/data/signatures.json: edit that. -->

    sudo vllm-install doctor              # what is wrong, root cause first, with the command that helps
    vllm-install status                   # one screen; --watch follows it
    vllm-install logs -f                  # the journal, with an explanation under a line that tells of a failure
    sudo vllm-install doctor --report report.tar.gz

`doctor` changes nothing. It looks at the host (systemd, driver, device nodes, disks, firewall), at what lies on
disk (record, unit, drop-ins, engine, model, keys, permissions on every path), at the journal and the kernel's
log, and asks the running service for an answer. A *fault* keeps the service from serving, now or at its next
start; a *note* is worth knowing. Exit status 0: no fault; 8: at least one. `--json` gives the same as data:
`findings` (`id`, `cause`, `evidence`, `commands`, `severity`), `unseen` (what could not be looked at, and why),
`healthy`. Without root it says what it could not see.

The report that `--report` writes holds versions, findings, facts, the unit, the settings, the record and the
last 2000 lines of the journal. Keys, tokens, passwords, addresses and prompts are taken out, also in part; look
through it all the same.

## A service with replicas

`vllm-install status` has a line for each replica beside what all do together: its state and stage, its GPUs, its
address, what it does, and what the gateway makes of it where that is not `UP`. `doctor` looks at each, and begins
the cause with its unit: `qwen3vl@2: …`. `logs` is the journal of all of them; `journalctl -u qwen3vl@2` that of one.

| finding | what it means | what helps |
|---|---|---|
| `haproxy-missing` | the gateway's program was removed | install it again |
| `tls` | the certificate of `TLS=self` ends soon, or cannot serve | `sudo vllm-install deploy` makes a new one |
| `gateway-down` | replicas serve, and nobody gets to them | `sudo systemctl start qwen3vl`: a restart is one of all |
| `gateway-no-answer` | the gateway runs, but nobody is answered through it | its journal |
| `replica-out` | a change that was cut off, or somebody, took it out of the gateway | `sudo vllm-install deploy` |
| `replica-unreached` | a replica serves, and the gateway's checks of it fail | the gateway's journal |
| `keys-differ` | somebody edited the keys of one replica's unit | `sudo vllm-install deploy`: those of the first |

While at least one replica serves, so does the service. One that failed is a fault all the same.

## A service on several hosts

`sudo vllm-install doctor` on any of them asks the others as well; what is wrong between them stands first. More in
[hosts.md](hosts.md).

| finding | what it means | what helps |
|---|---|---|
| `host-lost` | nothing is changed on any while it is away | `sudo vllm-install hosts drain NAME` |
| `host-behind` | it was installed anew, or let go there | `sudo vllm-install hosts join NAME` |
| `host-down` | the service does not run there | `sudo vllm-install doctor` on that host |
| `gateway-apart` | the gateway here does not reach that of another host | a firewall at `GROUP_PORT`, or that host |
| `hosts-pending` | whoever changed all hosts was killed | `sudo vllm-install deploy`, which changes nothing else |

## Lines of a log that tell the cause

The root cause is further up. `qwen3vl` stands for the service's name.
"""


def page() -> str:
    return HEAD + "".join(_section(signature) for signature in signatures())


def _section(signature: Signature) -> str:
    example = signature.examples[0]
    finding = signature.explain(example.line, "qwen3vl")
    assert finding is not None, signature.id
    line = example.line if len(example.line) <= 160 else example.line[:159] + "…"
    commands = "".join(f"    {command}\n" for command in finding.commands)
    note = " (note)" if signature.severity == NOTE else ""
    return f"\n### {signature.id}{note}\n\n{_sentence(finding.cause)}\n\n    # {line}\n{commands}"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}" + ("" if text.endswith((".", "'")) else ".")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
