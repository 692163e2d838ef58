"""The real vLLM from a bundle, tool and all, on a host that has no network and nothing of ours."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from installer.model import builtin
from tests.kit.boot.machine import Machine
from tests.kit.hub import Hub
from tests.kit.life import ask, cli
from tests.kit.memory import share

NAME = "Org/Tiny"
FILE = "/srv/tiny.bundle"
# A shell of a host that knows neither this checkout nor the package folders that this machine has bound in.
BARE = ("env", "-i", "HOME=/root", "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
OURS = (*BARE, "/opt/local/bin/vllm-install")  # the tool that came in the bundle
START = 240


def make_bundle(place: Path) -> tuple[Path, str]:
    """The file, and the digest that its maker tells whoever deploys it."""
    with Hub() as hub, Machine(network=True, store=True) as machine:
        hub.add(NAME, builtin.files())
        machine.at("/srv").mkdir(exist_ok=True)
        options = ("--model", NAME, "--engine", "cpu", "--hf-endpoint", hub.url)
        made = cli(machine, "bundle", "create", FILE, *options, "--json", timeout=900).json
        return Path(shutil.copy(machine.at(FILE), place)), made["bundle_sha256"]


def test_from_one_file_to_an_answer_without_a_network(cpu_engine: str, tmp_path: Path) -> None:
    bundle, digest = make_bundle(tmp_path)
    with Machine() as machine:
        assert machine.shell("ls /sys/class/net").stdout.split() == ["lo"], "this host is not cut off"
        assert not machine.at("/opt/vllm-install").exists()
        machine.shell("rm -rf /root/.config /root/.pip /etc/pip.conf")
        machine.at("/srv").mkdir(exist_ok=True)
        shutil.move(bundle, machine.at(FILE))
        machine.shell(f"mkdir /root/b && tar -xf {FILE} -C /root/b install.sh manifest.json tool")
        machine.run(*BARE, "sh", "/root/b/install.sh", "/opt/local")
        options = ("--gpu-memory-utilization", share())
        done = machine.run(*OURS, "deploy", "--bundle", FILE, "--bundle-sha256", digest, *options, timeout=900)
        key = re.search(r"sk-[\w-]{20,}", done.stdout)
        assert key is not None, done.stdout
        body = {"model": NAME, "max_tokens": 8, "messages": [{"role": "user", "content": "Hello"}]}
        answer = ask(machine, "POST", "/v1/chat/completions", key[0], body)
        assert answer.status == 200, answer
        assert answer.json["choices"][0]["message"]["content"]

        machine.at(FILE).unlink()
        assert json.loads(machine.run(*OURS, "deploy", "--json", timeout=START).stdout)["changes"] == []
        machine.run(*OURS, "models", "verify", timeout=START)
