"""A compose file's vLLM service: command, variables, published ports and mounts, seen from the host."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from installer.adoption import old_script
from installer.adoption.old import Old, read_text, serve_words
from installer.adoption.old_unit import SHELLS, variables
from installer.base.errors import Refused
from installer.base.host import Host
from installer.base.language import tr
from installer.runtime import vllm_flags
from installer.runtime.vllm_text import one_line
from installer.spec.vendors import NVIDIA

NODES, DEPTH = 20_000, 40  # a compose file has some hundreds, with every alias written out
_MERGE = "tag:yaml.org,2002:merge"
_VARIABLE = re.compile(r"\$(?:(\$)|\{([A-Za-z_]\w*)(?:(:?[-?+])((?:[^{}]|\{[^{}]*\})*))?\}|([A-Za-z_]\w*))")


class _Texts(yaml.SafeLoader):
    """Every scalar as the text it is: a port mapping is no number of base 60, and no version a float."""

    yaml_implicit_resolvers = {  # noqa: RUF012 the base class has it this way
        first: [(tag, pattern) for tag, pattern in resolvers if tag == _MERGE]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def load_documents(text: str, name: str) -> list[object]:
    """What a YAML text holds; one whose aliases unfold into more than any person writes is refused unread."""
    try:
        _measure(text, name)
        return list(yaml.load_all(text, _Texts))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", "") or tr("it cannot be read")
        raise Refused(
            tr("{name}, line {line} is not YAML: {problem}", name=name, line=mark.line + 1, problem=problem)
            if mark
            else tr("{name} is not YAML: {problem}", name=name, problem=problem)
        ) from None


def load_compose(text: str, name: str) -> dict[str, object]:
    content = load_documents(text, name)
    if len(content) != 1 or not isinstance(content[0], dict):
        raise Refused(tr("{name} is YAML, but no mapping", name=name), tr("name a compose file, with services in it"))
    return content[0]


def _measure(text: str, name: str) -> None:
    sizes: dict[str, int] = {}
    stack: list[tuple[str | None, int]] = [(None, 0)]  # (anchor, nodes so far) of every open collection
    for event in yaml.parse(text, _Texts):
        if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            stack.append((event.anchor, 1))
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            anchor, size = stack.pop()
            if anchor:
                sizes[anchor] = size
            stack[-1] = (stack[-1][0], stack[-1][1] + size)
        elif isinstance(event, yaml.AliasEvent):
            stack[-1] = (stack[-1][0], stack[-1][1] + sizes.get(event.anchor or "", NODES + 1))
        elif isinstance(event, yaml.ScalarEvent):
            if event.anchor:
                sizes[event.anchor] = 1
            stack[-1] = (stack[-1][0], stack[-1][1] + 1)
        if len(stack) > DEPTH or stack[-1][1] > NODES:
            raise Refused(
                tr("{name} unfolds into more than a compose file holds", name=name),
                tr("write it out without nested aliases"),
            )


def read(path: Path, host: Host, wanted: str | None) -> Old:
    text = read_text(path, host)
    services = load_compose(text, str(path)).get("services")
    if not isinstance(services, dict) or not services:
        raise Refused(tr("{path} has no services", path=path), tr("name a compose file, with services in it"))
    name, service = _choose(path, services, wanted)
    plain = one_line(name)
    if not isinstance(service, dict):
        raise Refused(tr("the service {name} of {path} says nothing", name=plain, path=path), tr("choose another one"))
    outside = variables(read_text(path.parent / ".env", host)) if host.exists(path.parent / ".env") else {}
    filled = _filled(service, outside)
    assert isinstance(filled, dict)
    inside, files = _environment(filled, path, host)
    words = [*_command(filled.get("entrypoint")), *_command(filled.get("command"))]
    found = Old(
        (), {**inside, **chosen_gpus(_gpus(filled))}, Path("/"), texts=(text, *files), shown=_excerpt(text, name)
    )
    serve, environment = serve_words(words), found.environment
    if serve is None and Path(words[0] if words else "").name in SHELLS and len(words) > 2:
        script = old_script.read(words[-1], found, host)
        serve, environment = script.words, script.environment
    if serve is None:
        if filled.get("entrypoint") or "vllm" not in str(filled.get("image", "")):
            raise Refused(
                tr("the service {name} of {path} does not start vLLM", name=plain, path=path),
                tr("choose it with --compose-service"),
            )
        serve = tuple(words[1:] if words[:1] == ["serve"] else words)  # the image's own entry point is vllm serve
    return Old(
        words=serve,
        environment=environment,
        texts=found.texts,
        shown=found.shown,
        mounts=tuple(_mounts(filled, path.parent)),
        listens=_listens(filled, serve, path),
        notes=(
            tr("the container is not stopped for you: docker compose -f {path} stop {name}", path=path, name=plain),
        ),
    )


def _choose(path: Path, services: dict[str, object], wanted: str | None) -> tuple[str, object]:
    if wanted is not None:
        if wanted not in services:
            raise Refused(
                tr("{path} has no service {wanted}", path=path, wanted=wanted),
                tr("its services: {services}", services=", ".join(map(one_line, services))),
            )
        return wanted, services[wanted]
    found = [name for name, service in services.items() if isinstance(service, dict) and _speaks_of_vllm(service)]
    if len(found) != 1:
        raise Refused(
            tr("{path} has {count} services that run vLLM", path=path, count=len(found))
            if found
            else tr("{path} has no service that runs vLLM", path=path),
            tr("choose one with --compose-service: {services}", services=", ".join(map(one_line, found or services))),
        )
    return found[0], services[found[0]]


def _speaks_of_vllm(service: dict[str, object]) -> bool:
    return any("vllm" in str(service.get(field, "")) for field in ("image", "command", "entrypoint"))


def _filled(value: object, outside: Mapping[str, str]) -> object:
    """Every text with its variables filled in from the .env file; what is not set there is empty."""
    if isinstance(value, dict):
        return {str(name): _filled(each, outside) for name, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, outside) for each in value]

    def fill(match: re.Match[str]) -> str:
        if match[1]:
            return "$"
        name, operator, other = match[2] or match[5], match[3] or "", match[4] or ""
        known = outside.get(name)
        absent = not known if ":" in operator else known is None
        if operator.endswith("?") and absent:
            raise Refused(
                tr("the compose file needs {name}, which its .env file does not set", name=name),
                tr("set {name} there", name=name),
            )
        if operator.endswith("+"):
            return "" if absent else other
        return str(_filled(other, outside)) if operator and absent else known or ""

    return _VARIABLE.sub(fill, str(value or ""))


def _command(value: object) -> list[str]:
    if isinstance(value, list):
        return [str(word) for word in value]
    # Compose divides a text as a shell does, but expands nothing: its $$ has become $ by now.
    lexer = old_script.Lexer(str(value or "").replace("$", "\\$"), {})
    return [word.text for words in lexer.commands() for word in words]


def _environment(service: Mapping[str, object], path: Path, host: Host) -> tuple[dict[str, str], list[str]]:
    found: dict[str, str] = {}
    texts = []
    given = service.get("env_file") or []
    for entry in given if isinstance(given, list) else [given]:
        file = path.parent / str(entry.get("path", "") if isinstance(entry, dict) else entry)
        if isinstance(entry, dict) and entry.get("required") == "false" and not host.exists(file):
            continue
        texts.append(read_text(file, host))
        found |= variables(texts[-1])
    own = service.get("environment") or {}
    if isinstance(own, dict):
        return found | {name: str(value) for name, value in own.items()}, texts
    pairs = (str(entry).partition("=") for entry in own) if isinstance(own, list) else ()
    return found | {name: value for name, equals, value in pairs if equals}, texts


def _gpus(service: Mapping[str, object]) -> list[str]:
    """deploy.resources.reservations.devices with device_ids chooses GPUs."""
    value: object = service
    for name in ("deploy", "resources", "reservations", "devices"):
        value = value.get(name) if isinstance(value, dict) else None
    devices = value if isinstance(value, list) else []
    return [str(i) for device in devices if isinstance(device, dict) for i in device.get("device_ids") or []]


def chosen_gpus(ids: Sequence[str]) -> dict[str, str]:
    """As vLLM's own variable says it."""
    return {NVIDIA.variables[0]: ",".join(ids)} if ids else {}


def entries(service: Mapping[str, object], name: str) -> list[object]:
    value = service.get(name) or []
    return value if isinstance(value, list) else [value]


def _mounts(service: Mapping[str, object], directory: Path) -> list[tuple[str, str]]:
    """(path inside, path on the host); a named volume has no path that we could rely on, so it is left out."""
    mounts = []
    for entry in entries(service, "volumes"):
        if isinstance(entry, dict):
            source, target = str(entry.get("source", "")), str(entry.get("target", ""))
        else:
            source, _, rest = str(entry).partition(":")
            target = rest.partition(":")[0]
        if source.startswith("~"):
            source = str(Path(source).expanduser())
        if target and source.startswith((".", "/")):
            mounts.append((target.rstrip("/"), str((directory / source).resolve())))
    return mounts


def _listens(service: Mapping[str, object], serve: tuple[str, ...], path: Path) -> tuple[str, int] | None:
    """Where the host listens for it: None where the container uses the host's own network."""
    if service.get("network_mode") == "host":
        return None
    ports = [
        (str(entry.get("host_ip", "")), str(entry.get("published", "")), str(entry.get("target", "")))
        if isinstance(entry, dict)
        else published(str(entry), path)
        for entry in entries(service, "ports")
    ]
    return listens(ports, vllm_flags.given(serve).get("--port", "8000"))


def published(entry: str, path: Path) -> tuple[str, str, str]:
    """Address and port on the host, where they are said, and the port inside."""
    match = re.fullmatch(r"(?:(?:\[?([0-9a-fA-F.:]+?)\]?):)?(?:(\d+):)?(\d+)(?:/tcp)?", entry)
    if not match:
        raise Refused(
            tr("{path}: the port {entry} is a range or no port", path=path, entry=one_line(entry, 40)),
            tr("publish one port by its number"),
        )
    address, outside, target = match[1] or "", match[2] or "", match[3]
    return ("", address, target) if address.isdecimal() else (address, outside, target)  # 8080:8000 has no address


def listens(ports: Sequence[tuple[str, str, str]], inside: str) -> tuple[str, int]:
    for address, outside, target in ports:
        if target == inside:
            return address or "0.0.0.0", int(outside or target)  # noqa: S104 as it was
    return "127.0.0.1", int(inside) if inside.isdecimal() else 8000


def _excerpt(text: str, name: str) -> str:
    """The lines of one service, by their indentation."""
    match = re.search(rf"^([ \t]+)[\"']?{re.escape(name)}[\"']?:.*\n(?:(?:\1[ \t]+.*|[ \t]*)\n?)*", text, re.MULTILINE)
    return match[0].rstrip() + "\n" if match else text
