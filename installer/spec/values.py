"""How the text of a setting becomes its value; what is not valid is a ValueError that says why."""

from __future__ import annotations

import ipaddress
import math
import os
import re
import shlex
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from installer.base.language import tr

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
ADAPTER = re.compile(r"[A-Za-z0-9][\w./:-]{0,199}", re.ASCII)
REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,199}", re.ASCII)
BUILTIN = "builtin:tiny"
USEFUL_CONTEXT = 256  # tokens: the longest template of the profiles, a short question and a short answer
MOST_CONTEXT = 16 * 1024 * 1024
LONGEST_NAME = 200  # of a model: it becomes a directory's name, with a few letters more
AUTO = ("auto",)
REPLICAS, SPAN = "replicas", "span"  # several hosts: each serves by itself, or all of them one model
AUTO_TOOLKIT = "auto"  # a CUDA compiler where it was measured to pay
AUTO_MODEL = "auto"  # the largest that fits the host
# A GPU as nvidia-smi -L or rocminfo names it, by its number, or by its address on the PCI bus.
IMAGE = re.compile(
    r"[a-z0-9][a-z0-9._-]*(:[0-9]{1,5})?(/[a-z0-9._-]+)*(:[A-Za-z0-9_][\w.-]{0,127})?(@sha256:[0-9a-f]{64})?", re.ASCII
)
GPU = re.compile(r"(?:GPU|MIG)-[0-9A-Za-z/-]+|[0-9]{1,3}|(?:[0-9A-Fa-f]{4,8}:)?[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-7]")
ENDPOINT = re.compile(r"https?://(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?(?:/[\w.~-]+)*", re.ASCII)
HOST_NAME = re.compile(r"(?!.{254})[A-Za-z0-9][A-Za-z0-9_-]*(?:\.[A-Za-z0-9][A-Za-z0-9_-]*)*")
LOOPBACK = re.compile(r"(?i)localhost(\..*)?|ip6-localhost|127(\.\d+)*|0(\.0)*")
WEBHOOK = re.compile(r"https?://(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?(?:/[!-~]*)?", re.ASCII)
MINIMUM_VLLM = (0, 25, 1)
MINIMUM_SGLANG = (0, 5, 17)
# To vLLM an empty list would allow every domain; a name that cannot exist allows none.
NO_DOMAINS = ("none.invalid",)


def text(value: str) -> str:
    if not value.isprintable():
        raise ValueError(tr("line breaks, control characters and the like are not allowed"))
    return value.strip()


def optional(value: str) -> str | None:
    return text(value) or None


def model(value: str) -> str:
    value = text(value)
    if value.startswith(("/", "./", "../")):
        return _possible(os.path.abspath(value))  # noqa: PTH100 resolve() would follow links; it must stay a full path
    if value == BUILTIN:
        return value
    if value.startswith("builtin:"):
        raise ValueError(tr("the only built-in model is {name}", name=BUILTIN))
    if all(HUB_ID.fullmatch(part) for part in value.split("/")) and ".." not in value and len(value) <= LONGEST_NAME:
        return value
    raise ValueError(tr("expected a hub id such as Qwen/Qwen3-VL-8B-Instruct, a directory, or builtin:tiny"))


def _possible(path: str) -> str:
    """The path, unless no file system could hold it."""
    if len(os.fsencode(path)) > 4000 or any(len(part) > 255 for part in os.fsencode(path).split(b"/")):
        raise ValueError(tr("the path is longer than a file system allows"))
    return path


def context(value: str) -> int | None:
    """1024, 32k, 256K or auto; None stands for auto."""
    value = text(value)
    if value.lower() == "auto":
        return None
    match = re.fullmatch(r"(\d{1,9})([kK]?)", value)
    if not match:
        raise ValueError(tr("expected a number of tokens such as 1024, 32k or 256K, or auto"))
    tokens = int(match[1]) * (1024 if match[2] else 1)
    if not 16 <= tokens <= MOST_CONTEXT:  # one that is not USEFUL_CONTEXT is read where it stands already
        least, most = USEFUL_CONTEXT, MOST_CONTEXT
        raise ValueError(tr("a context is between {least} and {most} tokens", least=least, most=most))
    return tokens


def latency(value: str) -> str:
    """2s or 500ms; nothing stands for none."""
    value = text(value)
    if value and not re.fullmatch(r"[1-9]\d{0,5}(ms|s)", value, re.ASCII):
        raise ValueError(tr("expected a time such as 2s or 500ms"))
    return value


def seconds(latency: str) -> float:
    """What such a time comes to."""
    return float(latency[:-2]) / 1000 if latency.endswith("ms") else float(latency[:-1])


def fraction(value: str) -> float:
    try:
        number = float(text(value))
    except ValueError:
        number = math.nan
    if not 0.05 <= number <= 1.0:
        raise ValueError(tr("expected a fraction of the GPU's memory between 0.05 and 1.0"))
    return number


def whole(low: int, high: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not re.fullmatch(r"\d{1,9}", text(value)) or not low <= int(value) <= high:
            raise ValueError(tr("expected a whole number between {low} and {high}", low=low, high=high))
        return int(value)

    return parse


def port(value: str) -> int:
    """0 stands for auto."""
    if text(value).lower() == "auto":
        return 0
    try:
        return whole(1, 65535)(value)
    except ValueError:
        raise ValueError(tr("expected a whole number between 1 and 65535, or auto")) from None


def gpus(value: str) -> tuple[str, ...]:
    """auto, or GPUs with commas or spaces between; which of them exist is for the host to say."""
    words = tuple(re.split(r"[\s,]+", text(value)))
    if words in (AUTO, ("",)):
        return AUTO
    for word in words:
        if not GPU.fullmatch(word):
            raise ValueError(
                tr(
                    "{word!r} names no GPU; expected auto, or uuids, indices or PCI addresses with commas between",
                    word=word,
                )
            )
    return words


def hosts(value: str) -> tuple[str, ...]:
    """Addresses with commas or spaces between; none, or two of them at least."""
    found = tuple(filter(None, re.split(r"[\s,]+", text(value))))
    for each in found:
        try:
            is_host = not (at := ipaddress.IPv4Address(each)).is_unspecified and not at.is_multicast
        except ValueError:
            is_host = False
        if not is_host:
            raise ValueError(tr("{address} is no IPv4 address of a host", address=repr(each)))
    if len(found) == 1 or len(set(found)) < len(found):
        raise ValueError(tr("expected two hosts or more, each once, such as 10.0.0.1,10.0.0.2"))
    return found


def peers(value: str) -> tuple[str, ...]:
    """The same, or a word for those that a command with --hosts finds."""
    return AUTO if text(value) == AUTO[0] else hosts(value)


def address(value: str) -> str:
    value = text(value)
    if value != "localhost":
        try:
            ipaddress.ip_address(value)
        except ValueError:
            raise ValueError(tr("expected an IPv4 or IPv6 address, or localhost")) from None
    return value


def one_of(*choices: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if text(value) not in choices:
            raise ValueError(tr("expected {choices} or {last}", choices=tr(", ").join(choices[:-1]), last=choices[-1]))
        return text(value)

    return parse


def version(value: str) -> str:
    value = text(value)
    match = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)(\.?(post|rc)\d+)?", value)
    if not match:
        raise ValueError(tr("expected a vLLM version such as 0.32.0"))
    if tuple(int(n) for n in match.groups()[:3]) < MINIMUM_VLLM:
        raise ValueError(tr("the oldest vLLM that the guard and launcher work with is 0.25.1"))
    return value


def sglang_version(value: str) -> str:
    value = text(value)
    match = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)(\.?(post|rc)\d+)?", value)
    if not match:
        raise ValueError(tr("expected an SGLang version such as 0.5.23"))
    if tuple(int(n) for n in match.groups()[:3]) < MINIMUM_SGLANG:
        raise ValueError(tr("SGLang before 0.5.17 runs code that its own processes are sent: take a newer one"))
    return value


def version_key(value: str) -> tuple[int, ...]:
    """By which versions compare, as far as `version` takes them; a candidate comes before its release."""
    numbers = [int(number) for number in re.findall(r"\d+", value)]
    return (*numbers[:3], -1 if "rc" in value else 0, *numbers[3:])


def url(value: str) -> str | None:
    value = text(value).rstrip("/")
    if value and not (re.fullmatch(r"(https?|file)://[^\s\"'\\]+", value) and _has_port(value)):
        raise ValueError(tr("expected a URL such as https://mirror.example/simple"))
    if "@" in value.partition("://")[2].partition("/")[0]:
        raise ValueError(
            tr("credentials do not belong into a settings file; put them into ~/.netrc or pip's configuration")
        )
    return value or None


def _has_port(url: str) -> bool:
    """Or none: what else stands behind a colon is the beginning of a password."""
    try:
        return urlsplit(url).port != 0
    except ValueError:
        return False


def endpoint(value: str) -> str | None:
    """The base of an OpenAI-compatible API, such as https://api.example/v1."""
    value = text(value).rstrip("/")
    if value and not ENDPOINT.fullmatch(value):
        raise ValueError(tr("expected the base of an API without a key in it, such as https://api.example/v1"))
    return value or None


def webhook(value: str) -> str | None:
    """A URL, or the path of a file that holds one: that of a chat is a secret, and settings are for all to read."""
    if text(value).startswith("/"):
        return path(value)
    value = url(value) or ""
    if value and not WEBHOOK.fullmatch(value):
        raise ValueError(tr("expected a URL such as https://alerts.example/hook, or the full path of a file with it"))
    return value or None


def command(value: str) -> tuple[str, ...]:
    """A program and its words; no shell will read them."""
    words = tuple(shlex.split(text(value)))
    if words and not words[0].startswith("/"):
        raise ValueError(tr("expected the full path of a program, such as /usr/local/bin/notify"))
    return words


def models(value: str) -> tuple[str, ...]:
    """Models named one by one: what is allowed for one says nothing about another."""
    return tuple(model(word) for word in shlex.split(text(value)))


def sources(value: str) -> tuple[str, ...]:
    """Where models come from, in order: hub, modelscope, modelscope+URL, or the URL of a hub's mirror."""
    words = tuple(text(value).split())
    for word in words:
        address = word.removeprefix("modelscope+")
        if word not in ("hub", "modelscope") and not (address.startswith("http") and url(address)):
            raise ValueError(
                tr(
                    "{word!r} is no source; expected hub, modelscope, or the URL of a mirror, with spaces between",
                    word=without_secrets(word),
                )
            )
    if not words:
        raise ValueError(tr("expected at least one source, such as hub or modelscope"))
    return words


def place(value: str) -> str | None:
    return url(value) if "://" in value else _possible(text(value)) or None


def image(value: str) -> str | None:
    """A container image by its name, its digest or its ID, or by the file that it lies in."""
    value = text(value)
    if value.startswith(("/", "./", "../")):
        return _possible(os.path.abspath(value))  # noqa: PTH100 resolve() would follow links; it must stay a full path
    if value and not IMAGE.fullmatch(value):
        raise ValueError(tr("expected an image, such as docker.io/vllm/vllm-openai:v0.32.0, or a file"))
    return value or None


URLS = (url, endpoint, webhook, sources, place)


def without_secrets(value: str) -> str:
    """What was typed as a URL, fit for an error: before an @ and behind a ? may stand a password or a key."""
    return re.sub(r"\?.*", "?***", re.sub(r"^(\w[\w+.-]*://)?.*@", r"\1***@", value))


def name(value: str) -> str | None:
    """A word of its own on vLLM's command line, which would take it for a flag if it looked like one."""
    value = text(value)
    if value.startswith("-"):
        raise ValueError(tr("a name cannot start with -"))
    if len(value) > LONGEST_NAME:
        raise ValueError(tr("a name has at most {count} characters", count=LONGEST_NAME))
    return value or None


def names(value: str) -> tuple[str, ...]:
    """Several for the same thing; the first is what we ask by."""
    return tuple(dict.fromkeys(found for word in words(text(value)) if (found := name(word))))


def words(value: str) -> list[str]:
    """By a shell's rules; what is none by them is one word, as it was when there was but one."""
    try:
        return shlex.split(value)
    except ValueError:
        return [value]


def adapters(value: str) -> tuple[str, ...]:
    """NAME=DIRECTORY, NAME=HUB-ID or NAME=HUB-ID@REVISION with commas between; clients ask for the name."""
    found = {}
    for word in filter(None, map(str.strip, text(value).split(","))):
        name, equals, source = word.partition("=")
        if not equals or not ADAPTER.fullmatch(name) or not source or name in found:
            raise ValueError(tr("expected NAME=DIRECTORY or NAME=HUB-ID with commas between, each name once"))
        place, at, revision = (source, "", "") if source[0] in "/." else source.partition("@")
        if model(place) == BUILTIN or (at and not REVISION.fullmatch(revision)):
            raise ValueError(
                tr("{source!r} is neither a directory nor a hub id with or without @REVISION", source=source)
            )
        found[name] = model(place) + at + revision
    return tuple(f"{name}={source}" for name, source in found.items())


def parser(value: str) -> str:
    """auto, none, or the name of one of vLLM's parsers; which names there are depends on its version."""
    value = text(value)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,63}", value):
        raise ValueError(tr("expected auto, none, or the name of a parser such as hermes"))
    return value


def path(value: str) -> str | None:
    value = text(value)
    if value and not value.startswith("/"):
        raise ValueError(tr("expected an absolute path"))
    return _possible(value) or None


def host_name(value: str) -> str:
    """By which every host of a group reaches this one: a name for ssh, and nothing that it takes for something else."""
    name = text(value)
    if not HOST_NAME.fullmatch(name):
        raise ValueError(tr("expected the name or IPv4 address of a host, as ssh knows it, such as gpu1"))
    if LOOPBACK.fullmatch(name):
        raise ValueError(tr("this name means another host on every host; expected one that all know it by"))
    return name


def host_names(value: str) -> tuple[str, ...]:
    """With commas between."""
    names = tuple(host_name(word) for word in text(value).split(","))
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(tr("{name} is named twice", name=twice))
    return names


def network(value: str) -> str:
    """IPv4, as GROUP_HOSTS are."""
    try:
        return str(ipaddress.IPv4Network(text(value), strict=False))
    except ValueError:
        raise ValueError(tr("expected an IPv4 network such as 10.0.0.0/24")) from None


def flag(value: str) -> bool:
    lowered = text(value).lower()
    if lowered in ("1", "true", "yes", "on"):
        return True
    if lowered in ("", "0", "false", "no", "off"):
        return False
    raise ValueError(tr("expected yes or no"))


def domains(value: str) -> tuple[str, ...]:
    domains = tuple(shlex.split(text(value)))
    for domain in domains:
        if not re.fullmatch(r"\w[\w.-]*", domain):
            raise ValueError(
                tr(
                    "{domain!r} is not a domain; expected names such as images.example, with spaces between",
                    domain=domain,
                )
            )
    return domains


# As adopting reads them from the values of vLLM's own flag.


def last(given: Sequence[str]) -> str:
    return given[-1] if given else ""


def tokens(given: Sequence[str]) -> str:
    """vLLM's 32k are 32000 tokens and its 32K are 32768; -1 is its auto."""
    value = last(given)
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([kKmM])", value)
    scale = {"k": 1000, "K": 1024, "m": 10**6, "M": 2**20}
    return "auto" if value == "-1" else str(int(float(match[1]) * scale[match[2]])) if match else value


def named_domains(given: Sequence[str]) -> str:
    return "" if tuple(given) == NO_DOMAINS else " ".join(given)
