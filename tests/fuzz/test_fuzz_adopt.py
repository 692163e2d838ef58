"""Units, scripts and compose files that nobody in good faith wrote."""

from __future__ import annotations

import json
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from installer.adoption import old_script
from installer.adoption.old import Old
from installer.adoption.translate import translate
from installer.base.host import Host
from installer.flow import adopt
from tests.fuzz.hostile import TEXT, is_ours, outcome, tampered

SERVE = "vllm serve org/model --port 8001 --api-key sk-0123456789-abcdefghijklmnopqrstu"
UNIT = f"[Unit]\nDescription=x\n[Service]\nEnvironment=A=b 'C=d e'\nExecStart=/opt/v/bin/{SERVE}\n"
SCRIPT = f"#!/bin/sh\nset -eu\nexport A=b\nif true; then\n  exec {SERVE} \\\n  --dtype auto\nfi\n"
COMPOSE: dict[str, Any] = {
    "services": {
        "llm": {
            "image": "vllm/vllm-openai:v0.32.0",
            "command": SERVE.split()[2:],
            "environment": {"HF_TOKEN": "${TOKEN:-x}"},
            "ports": ["127.0.0.1:8080:8001"],
            "volumes": ["./models:/models"],
            "deploy": {"resources": {"reservations": {"devices": [{"driver": "nvidia", "device_ids": ["0"]}]}}},
        }
    }
}
QUADLET = (
    "[Unit]\nDescription=x\n[Container]\nImage=docker.io/vllm/vllm-openai:v1\nEntrypoint=vllm\n"
    "Exec=serve org/model --port 8001\n"
    "Environment=A=b\nSecret=key,type=env,target=VLLM_API_KEY\nPublishPort=127.0.0.1:8080:8001\n"
    "Volume=/srv/m:/m:ro\nAddDevice=nvidia.com/gpu=0\n"
)
VLLM = {
    "image": "vllm/vllm-openai:v1",
    "command": ["vllm"],
    "args": SERVE.split()[1:],
    "env": [{"name": "A", "value": "b"}, {"name": "K", "valueFrom": {"secretKeyRef": {"name": "k", "key": "k"}}}],
    "volumeMounts": [{"name": "m", "mountPath": "/m"}],
}
MANIFEST: dict[str, Any] = {
    "kind": "Deployment",
    "spec": {
        "replicas": 2,
        "template": {"spec": {"containers": [VLLM], "volumes": [{"name": "m", "hostPath": {"path": "/srv/m"}}]}},
    },
}
SERVICE = "---\nkind: Service\nspec: {ports: [{port: 8080}]}\n"
WORDS = (
    "=",
    "\\",
    "\n",
    " ",
    "'",
    '"',
    "$",
    "${",
    "}",
    "$(",
    ")",
    "`",
    ";",
    "&&",
    "|",
    "<<EOF",
    ">",
    "%",
    "%%",
    "@",
    "-",
    "#",
    "[Service]",
    "ExecStart=",
    "Environment=",
    "EnvironmentFile=/dev/zero",
    "if",
    "then",
    "fi",
    "for",
    "&id001",
    "*id001",
    "!!python/object:os.system",
    "---",
    "? ",
    ": ",
    "- ",
    "\t",
    "--port",
    "--host",
    "8000:8000:8000",
    "::",
    "/dev/stdin",
)
SPLICE = st.one_of(st.sampled_from(WORDS), TEXT, st.text(max_size=4))


@st.composite
def damaged(draw: st.DrawFn, text: str) -> str:
    """The text with pieces put in, taken out or doubled in a few places."""
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(text)))
        end = min(begin + draw(st.sampled_from((0, 0, 1, 5, 40))), len(text))
        text = text[:begin] + draw(SPLICE) * draw(st.sampled_from((1, 1, 2, 50))) + text[end:]
    return text


def taken_over(name: str, text: str) -> None:
    """What is shown of a source that is taken over, or why it is refused."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(text.encode(errors="surrogateescape") if text.isascii() else text.encode(errors="replace"))
        for compose_service in (None, "llm") if name.endswith(".yml") else (None,):
            outcome(partial(proposed, str(path), compose_service))


def proposed(source: str, compose_service: str | None) -> None:
    became(adopt.find(source, Host(), compose_service))


def became(old: Old) -> None:
    found = translate(old, "llm", {}, {}, Host(), new_key=True)
    for line in (*found.clients, *found.notes, *(f"{name}={value}" for name, value in found.environment)):
        is_ours(line)
    assert found.settings.model
    assert all(not word or word.isprintable() for word in found.settings.vllm_args)


@given(damaged(UNIT))
@settings(max_examples=200)
def test_a_unit(text: str) -> None:
    taken_over("llm.service", text)


@given(damaged(SCRIPT))
@settings(max_examples=200)
def test_a_script(text: str) -> None:
    taken_over("serve.sh", text)


@given(damaged(SERVE))
@settings(max_examples=200)
def test_a_line(text: str) -> None:
    outcome(lambda: became(old_script.read(text, Old((), dict(os.environ)), Host())))


@given(tampered(COMPOSE))
@settings(max_examples=300)
@example({"services": {"llm": {"image": "vllm/vllm-openai"}}})
@example({"services": {"llm": {"image": "vllm/vllm-openai", "command": None}}})
@example({"services": {"llm": {"image": "vllm/vllm-openai", "command": []}}})
@example({"services": {"llm": {"image": "vllm", "entrypoint": ["bash", "-c"]}}})
@example({"services": {"llm": None}})
@example(
    {
        "services": {
            "llm": {
                "image": "vllm",
                "command": ["m"],
                "deploy": {"resources": {"reservations": {"devices": [{"device_ids": "01"}]}}},
            }
        }
    }
)
def test_a_compose_file(document: object) -> None:
    taken_over("compose.yml", json.dumps(document))  # which is YAML, too


@given(damaged(json.dumps(COMPOSE, indent=1)))
@settings(max_examples=200)
def test_a_damaged_compose_file(text: str) -> None:
    taken_over("compose.yml", text)


@given(damaged(QUADLET))
@settings(max_examples=200)
@example(QUADLET.replace("Entrypoint=vllm", "Entrypoint=[]"))
@example(QUADLET.replace("Entrypoint=vllm", "Entrypoint=[{"))
@example(QUADLET.replace("Entrypoint=vllm", f"Entrypoint={'[' * 100_000}"))
def test_a_quadlet(text: str) -> None:
    taken_over("llm.container", text)


@given(tampered(MANIFEST))
@settings(max_examples=200)
def test_a_manifest(document: object) -> None:
    taken_over("llm.yml", f"apiVersion: v1\n---\n{json.dumps(document)}\n{SERVICE}")
