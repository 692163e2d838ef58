"""Settings, targets and texts that several tests share, and strategies that make any number of them."""

from __future__ import annotations

import shlex
from pathlib import Path

from hypothesis import strategies as st

from installer.base.errors import UsageError
from installer.spec.asked import load_settings
from installer.spec.settings import FIELDS, Settings

# Characters that mean something to a shell, a dotenv file or systemd come up often; line breaks and controls too.
CHARACTERS = st.one_of(
    st.sampled_from(" \"'\\%$;#=-@+!:|{}[]()<>&*?~`,./\n\r\t\0\x85\u2028\u00a0\ud800é日😀"), st.characters()
)
TEXTS = st.text(CHARACTERS, max_size=20)

# For a setting with few valid values: some of them, as a user may write them.
VALUES = {
    "model": st.one_of(
        TEXTS.map(lambda t: f"/{t}"),
        st.from_regex(r"[A-Za-z0-9][\w.-]{0,8}(/[A-Za-z0-9][\w.-]{0,8})?", fullmatch=True),
        st.sampled_from(["builtin:tiny", "./x", "../models/a b"]),
    ),
    "models_dir": TEXTS.map(lambda t: f"/{t}"),
    "lora": st.sampled_from(["a=Org/A,b:1=Org/B@v1", "sql=Org/Sql@" + "0" * 40]),
    "max_model_len": st.one_of(st.just("auto"), st.integers(16, 10**6).map(str), st.integers(1, 512).map("{}k".format)),
    "gpu_memory_utilization": st.floats(0.05, 1.0).map(str),
    "tensor_parallel_size": st.integers(1, 64).map(str),
    "replicas": st.integers(1, 64).map(str),
    "download_connections": st.integers(1, 16).map(str),
    "host": st.one_of(st.ip_addresses().map(str), st.just("localhost")),
    "gpus": st.sampled_from(["auto", "0", "1,3", "GPU-8932f937 MIG-c6d4f1ef", "0000:3b:00.0"]),
    "port": st.integers(1, 65535).map(str),
    "drain": st.integers(0, 3600).map(str),
    "hold": st.integers(0, 3600).map(str),
    "tls": st.sampled_from(["none", "self"]),
    "tls_cert": TEXTS.map(lambda t: f"/{t}"),
    "tls_key": TEXTS.map(lambda t: f"/{t}"),
    "routing": st.sampled_from(["leastconn", "session"]),
    "fallback_url": st.one_of(TEXTS.map(lambda t: f"https://api.example/{t}"), st.just("http://[::1]:8/v1")),
    "fallback_key_file": TEXTS.map(lambda t: f"/{t}"),
    "notify_command": st.lists(TEXTS, max_size=4).map(lambda words: shlex.join(["/usr/local/bin/tell", *words])),
    "notify_url": st.one_of(
        TEXTS.map(lambda t: f"https://alerts.example/{t}"), TEXTS.map(lambda t: f"/etc/{t}"), st.just("http://[::1]:8")
    ),
    "notify_form": st.sampled_from(["json", "slack"]),
    "tool_call_parser": st.sampled_from(["auto", "none", "hermes", "granite-20b-fc", "qwen3_coder"]),
    "reasoning_parser": st.sampled_from(["auto", "none", "qwen3", "deepseek_r1"]),
    "engine": st.sampled_from(["auto", "cuda", "cpu", "rocm"]),
    "cuda_toolkit": st.sampled_from(["auto", "none", "wheels", "host"]),
    "vllm_version": st.sampled_from(["0.25.1", "0.32.0", "0.33.0", "1.0.0rc1", "0.32.0.post1"]),
    "python": TEXTS.map(lambda t: f"/usr/bin/{t}"),
    "index_url": TEXTS.map(lambda t: f"https://mirror.example/{t}"),
    "find_links": st.one_of(TEXTS, TEXTS.map(lambda t: f"https://mirror.example/{t}")),
    "hf_endpoint": TEXTS.map(lambda t: f"http://hub.example:8080/{t}"),
    "offline": st.sampled_from(["yes", "no", "1", "0", "true", "off"]),
    "allowed_media_domains": st.lists(st.from_regex(r"[a-z0-9][a-z0-9.-]{0,9}", fullmatch=True)).map(shlex.join),
    "runtime": st.sampled_from(["venv", "podman"]),
    "image": st.sampled_from(["docker.io/vllm/vllm-openai:v0.32.0", "localhost:5000/a", "/srv/vllm.tar"]),
    "engine_family": st.sampled_from(["vllm", "sglang"]),
    "sglang_version": st.sampled_from(["0.5.17", "0.5.23"]),
    "sglang_args": st.just("--chunked-prefill-size 512"),
    "vllm_args": st.lists(TEXTS, max_size=4).map(lambda words: shlex.join(["--flag", *words])),
}  # fmt: skip
SERVICES = st.from_regex(r"[a-z][a-z0-9_-]{0,25}", fullmatch=True).filter(lambda name: name != "vllm-install")


# What nobody may start a guarded and watched vLLM with, in the spellings that argparse takes, and what it is.
UNGUARDED = [
    ("--headless", "--headless"),
    ("--headles", "--headless"),
    ("--disable-log-stats", "--disable-log-stats"),
    ("--disable-log-stat", "--disable-log-stats"),
    ("--disable_log_st", "--disable-log-stats"),
    ("--grpc", "--grpc"),
    ("--grpc-p 9", "--grpc-port"),
]


def accepted(attribute: str, text: str) -> bool:
    try:
        load_settings("any", {}, {}, {attribute: text})
    except UsageError:
        return False
    return True


@st.composite
def any_settings(draw: st.DrawFn) -> Settings:
    """Settings that passed validation: some defaults, some values as odd as validation lets through."""
    flags = {}
    for attribute in FIELDS:
        if draw(st.booleans()):
            text = draw(VALUES.get(attribute, TEXTS))
            if accepted(attribute, text):
                flags[attribute] = text
    return load_settings(draw(SERVICES), {}, {}, flags)


def tree(root: Path) -> dict[str, str]:
    """Every file below a directory, with its text."""
    return {str(p.relative_to(root)): p.read_text() for p in sorted(root.rglob("*")) if p.is_file()}
