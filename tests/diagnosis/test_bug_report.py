"""The report for a bug tracker: secrets are seeded wherever a host may have them, and none is in it."""

from __future__ import annotations

import io
import re
import stat
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from installer.base.host import Host
from installer.base.layout import Layout
from installer.diagnosis.bug_report import _versions
from installer.diagnosis.redact import Redactor, harvest
from installer.diagnosis.scene import Scene
from installer.spec.state import State
from tests.kit.boot.machine import Machine
from tests.kit.life import SERVICE, cli, standin, until
from tests.kit.targets import target

UNIT = f"/etc/systemd/system/{SERVICE}.service"
# None of them has a part that means something; WINDOW characters of one are one too many.
SECRETS = {
    "plain": "sk-qwen3vl-Zp4Kq9Xw2Lm7Rt5Vb8Nc3Hd6Js1Fg0Ay4Ue",
    "dropin": "Qx7Wz2Rv9Km4Tn6Pb1",
    "unnamed": "Jv5Hy8Lc3Gd0Sf7Ma2",
    "setting": "Bt4Nw9Ek6Xp1Zr3Uq8",
    "vllm_args": "Yd2Fm7Vs5Ck0Hj8Tg3",
    "comment": "Lr6Px1Qb9Wn4Ze7Kv2",
    "hf_env": "hf_Mg3Ts8Jd5Yc0Fh6Xa1Wq9Rk4",
    "hf_file": "hf_Cz7Vb2Nk9Lp4Sx6Dt1Gw8Qj3",
    "token_file": "Wx5Gb9Lq2Hs7Kn3Vz8Ct",
    "netrc": "Ea5Ru0Ih8Oy3Tl6Mb",
    "proxy": "p@ss/w0rd%Kf9Xz3Wm",
    "pip": "Uv8Gq3Zn6Yt1Hs4Rc",
    "old_key": "Dk1Jw6Sb9Xm4Pf7Vt2Lz5",
    "bearer": "Nh3Cy8Qg5Ra0Ev7Tk2Ui6",
    "prompt": "the patient is called Wilhelmine",
}
ANNOUNCED = ("prompt", "old_key", "bearer", "comment")  # of no value anywhere else on the host
SEED = f"""
    sed -i 's/default=sha256:[0-9a-f]*/default={SECRETS["plain"]}/' {UNIT}
    mkdir -p {UNIT}.d
    echo '[Service]' >{UNIT}.d/local.conf
    echo 'Environment=MY_PASSWORD={SECRETS["dropin"]} ANYTHING={SECRETS["unnamed"]}' >>{UNIT}.d/local.conf
    echo '# was {SECRETS["comment"]}' >>{UNIT}.d/local.conf
    echo 'SERVICE_TOKEN={SECRETS["setting"]}' >>/etc/vllm-install/{SERVICE}.env
    echo '# the old one: {SECRETS["comment"]}' >>/etc/vllm-install/{SERVICE}.env
    mkdir -p /root/.cache/huggingface /root/.config/pip
    printf %s '{SECRETS["hf_file"]}' >/root/.cache/huggingface/token
    printf 'machine mirror.example login me password {SECRETS["netrc"]}\\n' >/root/.netrc
    echo '[global]' >/root/.config/pip/pip.conf
    echo 'extra-index-url = https://me:{SECRETS["pip"]}@mirror.example/simple' >>/root/.config/pip/pip.conf
    systemctl daemon-reload
    systemctl restart {SERVICE}
"""
# Also where nothing announces them, in URLs, cut short by a line's end, in base64, and among other words.
LINES = [
    *(f"noise {value} noise" for name, value in SECRETS.items() if name not in ANNOUNCED),
    *(f"cut off {SECRETS[name][:12]}" for name in ("plain", "dropin", "hf_env", "netrc", "pip")),
    f"GET http://u:{quote(SECRETS['proxy'], safe='')}@proxy.example:3128/",
    f"retrying with --api-key {SECRETS['old_key']} now",
    f"header Authorization: Bearer {SECRETS['bearer']}",
    f"Received request cmpl-1: prompt: '{SECRETS['prompt']}', params",
    f"client 203.0.113.77:4711 used {SECRETS['hf_file'][3:]}",
]  # fmt: skip


@pytest.fixture(scope="module")
def machine(standin_wheels: Path) -> Iterator[Machine]:
    with Machine() as machine:
        machine.write("/root/hub-token", SECRETS["token_file"] + "\n", 0o600)
        cli(machine, "deploy", *standin(standin_wheels), "--hf-token-file", "/root/hub-token")
        yield machine


def unpacked(data: bytes) -> dict[str, str]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = {member: archive.extractfile(member) for member in archive.getmembers()}
        assert all(member.mode == 0o600 for member in members)
        return {member.name: file.read().decode() for member, file in members.items() if file}


def test_nothing_secret_is_in_the_report_also_not_in_part(machine: Machine) -> None:
    machine.shell(SEED)
    # journalctl --unit shows what a process of the unit says: say it from inside the unit's control group, by a process
    # that is still there when the journal asks who it is.
    machine.write("/root/lines", "\n".join(LINES) + "\n")
    say = f"""
        group=$(systemctl show {SERVICE} --property=ControlGroup --value)
        sh -c 'echo $$ >/sys/fs/cgroup'$group'/cgroup.procs
               exec systemd-cat sh -c "cat /root/lines; journalctl --sync"'"""

    def is_said() -> bool:
        """Now and then the journal places it elsewhere: then it is said again."""
        machine.shell(say)
        return SECRETS["dropin"] in machine.journal(f"--unit={SERVICE}")

    until("the seeds are where they are looked for", is_said, machine)
    proxy = f"http://me:{quote(SECRETS['proxy'], safe='')}@proxy.example:3128"
    env = {"HF_TOKEN": SECRETS["hf_env"], "HTTPS_PROXY": proxy, "VLLM_ARGS_TOKEN": SECRETS["vllm_args"]}
    words = [f"{name}={value}" for name, value in env.items()]
    done = machine.run("env", *words, *machine_cli("doctor", "--report", "/root/report.tar.gz"), check=False)
    assert "look through it" in done.stderr, done
    path = machine.at("/root/report.tar.gz")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    files = unpacked(path.read_bytes())
    for name, secret in SECRETS.items():
        body = secret.removeprefix("sk-qwen3vl-")
        pieces = [body] if name == "prompt" else [body[at : at + 6] for at in range(len(body) - 5)]
        for file, text in files.items():
            assert not [piece for piece in pieces if piece in text], f"{name} in {file}"
    whole = "\n".join(files.values())
    assert "203.0.113.77" not in whole
    assert not re.search(r"sha256:[0-9a-f]{9}", whole)
    # And it is still of use.
    assert f"{SERVICE}-report/journal.txt" in files
    assert "vLLM API server version 0.32.0" in files[f"{SERVICE}-report/journal.txt"]
    assert "WatchdogSec=120" in files[f"{SERVICE}-report/unit.txt"]
    assert "--max-model-len 1024" in files[f"{SERVICE}-report/unit.txt"]
    assert "key-plain" in files[f"{SERVICE}-report/findings.json"]


def machine_cli(*words: str) -> list[str]:
    return [sys.executable, "-m", "installer", *words]


def test_a_report_replaces_no_file(machine: Machine) -> None:
    machine.write("/root/precious", "precious")
    done = cli(machine, "doctor", "--bundle", "/root/precious", code=3)
    assert "exists already" in done.err
    assert machine.at("/root/precious").read_text() == "precious"


SECRET = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=40)


@given(secret=SECRET, before=st.text(max_size=20), after=st.text(max_size=20), cut=st.integers(6, 40))
def test_a_known_secret_is_taken_out_of_any_text(secret: str, before: str, after: str, cut: int) -> None:
    redact = Redactor([secret])
    for spelling in (secret, quote(secret, safe=""), secret[:cut], secret[-cut:]):
        clean = redact(before + spelling + after)
        assert not [at for at in range(len(secret) - 5) if secret[at : at + 6] in clean.replace("[secret]", "")]


@pytest.mark.parametrize(
    ("line", "gone"),
    [
        ("OPENAI_API_KEY=abcdefgh12345", "abcdefgh12345"),
        ('{"api_key": "abcdefgh12345"}', "abcdefgh12345"),
        ("password: hunter22hunter", "hunter22hunter"),
        ("x-api-key: abcdefgh12345", "abcdefgh12345"),
        ("git clone https://me:abcdefgh12345@host/x", "abcdefgh12345"),
        ("--hf-token abcdefgh12345", "abcdefgh12345"),
        ("token hf_abcdefgh12345", "hf_abcdefgh12345"),
        ("key AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
        ("jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.sig", "eyJhbGciOiJIUzI1NiJ9"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIabc\n-----END RSA PRIVATE KEY-----", "MIIabc"),
        ("default=sha256:" + "ab12" * 16, "ab12" * 4),
    ],
)
def test_what_looks_like_a_secret_is_taken_out_unknown_as_it_is(line: str, gone: str) -> None:
    assert gone in line
    assert gone not in Redactor([])(line)


def test_ordinary_words_stay() -> None:
    line = "INFO 11-21 KV cache size: 28,672 tokens; --max-model-len 1024 --port 8000 on 127.0.0.1 and 0.0.0.0"
    assert Redactor([])(line) == line
    assert harvest(line) == set()


def test_the_versions_are_those_of_the_packages_without_their_checksums(host: Host) -> None:
    engine = replace(target().engine, lock=f"torch==2.13.0 --hash=sha256:{'a' * 64} --hash=sha256:{'b' * 64}\n")
    state = State(SERVICE, proved=replace(target(), engine=engine))
    said = _versions(Scene(host, Layout(SERVICE), state, None))
    assert "vLLM 0.32.0 (cuda), /usr/bin/python3.11, tested lock\ntorch==2.13.0\n" in said
    assert "sha256" not in said
