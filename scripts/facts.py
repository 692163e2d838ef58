"""What the reference and the man page say beside the verbs: settings, environment, exit codes, files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from installer.base.errors import Exit
from installer.spec.settings import FIELDS, to_text

EXIT_CODES = {
    Exit.DONE: "done",
    Exit.BUG: "a bug in vllm-install",
    Exit.USAGE: "the command line or the settings file is not valid",
    Exit.REFUSED: "refused before anything was changed; status: the service does not run, as systemctl has it",
    Exit.ENGINE: "the engine could not be installed",
    Exit.MODEL: "the model could not be downloaded or verified",
    Exit.NOT_PROVED: "the service did not prove itself; the host is as it was before",
    Exit.NOT_RESTORED: "the service did not prove itself, and the host could not be put back",
    Exit.FAULTS_FOUND: "doctor found faults",
    Exit.INTERRUPTED: "interrupted; the same command continues",
}

# Beside the settings themselves, which are all read from the environment as well.
ENVIRONMENT = {
    "HF_TOKEN": "The hub's token, for gated models, where HF_TOKEN_PATH names no file. It is never written anywhere.",
    "MODELSCOPE_API_TOKEN": "The same for ModelScope.",
    "HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY": "The proxy for packages and models; in lower case, too.",
    "SSL_CERT_FILE, SSL_CERT_DIR, REQUESTS_CA_BUNDLE": "Certificates that are trusted.",
    "PIP_CONFIG_FILE, PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS": (
        "pip's configuration, these and its files, says where packages come from; INDEX_URL and FIND_LINKS go before."
    ),
    "LANGUAGE, LC_ALL, LC_MESSAGES, LANG": "The language of what is said: English, or Simplified Chinese for zh_CN.",
    "TMPDIR": "Where temporary files go.",
    "CUDA_HOME, CUDA_PATH": "Where the host's own CUDA toolkit is, for CUDA_TOOLKIT=host.",
    "NO_COLOR": "No colour, where it is set.",
}

FILES = {
    "/etc/systemd/system/NAME.service": (
        "The unit: all vLLM flags and the keys' digests, no secret. Changes of your own belong into "
        "systemctl edit NAME."
    ),
    "/etc/systemd/system/NAME@K.service": "One replica's, where there are several; NAME.service is their gateway.",
    "/etc/systemd/system/vllm-soak@NAME.timer": "Looks at a service after a change with --soak, while that lasts.",
    "/etc/systemd/system/vllm-alarm@NAME.service, .timer": "Looks whether somebody is to be told of the service.",
    "/etc/systemd/system/vllm-notify@NAME.service": "Tells them: NOTIFY_URL, NOTIFY_COMMAND.",
    "/etc/vllm-install/NAME.env": "The settings.",
    "/etc/vllm-install/NAME.limits": "What each key may use at most, where one is limited.",
    "/etc/vllm-install/NAME.haproxy.cfg": "The gateway's configuration, where there is one.",
    "/etc/vllm-install/ca": "The host's own authority for TLS=self: its certificate, and its key, for root alone.",
    "/etc/vllm-install/monitor": "What Prometheus and Grafana read, and the key for Prometheus, after monitor enable.",
    "/etc/sysusers.d/vllm-install-NAME.conf": "The service's user, vllm-NAME.",
    "/opt/vllm-install/engines/ID": "vLLM, immutable, shared by all services that want the same.",
    "/opt/vllm-install/runtime/VERSION": "Launcher, watcher and guard, which vLLM runs with.",
    "/opt/vllm-install/cache": "Packages that engines were made of; their files are shared by hard links.",
    "/var/cache/vllm-install/hub": "Weights, in the hub's own cache layout, shared, read-only to the services.",
    "/var/cache/NAME": "Compile caches of one service.",
    "/var/lib/vllm-install/NAME": "What was proved last, and the probe key; root only.",
    "/var/lib/vllm-usage/NAME": "What each key has used; the service's own, bounded in size.",
    "/var/lib/vllm-install-logs": "Up to where monitor logs has sent the journal on.",
    "/run/NAME": "Digests of the keys in force.",
}


@dataclass(frozen=True)
class Setting:
    names: tuple[str, ...]
    option: str
    default: str
    help: str


def settings() -> Iterator[Setting]:
    for attribute, about in FIELDS.items():
        default = to_text(attribute, about.default) if about.default is not None else ""
        option = about.typed if about.typed != "--" else "-- FLAGS"
        yield Setting(about.names, option, default, about.help)
