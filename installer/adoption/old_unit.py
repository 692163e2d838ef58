"""A hand-written systemd unit, read by systemd's own rules: continuations, drop-ins, quoting, specifiers, variables."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from dotenv.parser import parse_stream

from installer.adoption import old_script
from installer.adoption.former import is_own
from installer.adoption.old import Old, home, read_text, serve_words
from installer.base.errors import Refused
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import Layout
from installer.runtime import vllm_flags
from installer.spec.keys import PROBE, parse
from installer.spec.records import check_unmanaged
from installer.units.systemd import unit_properties

UNIT_NAME = re.compile(r"[A-Za-z0-9:_.\\@-]{1,200}")
PLACES = ("/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system",
          "/lib/systemd/system")  # fmt: skip
SHELLS = ("sh", "bash", "dash")
_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "s": " "}
_DIRECTORIES = {"t": "/run", "S": "/var/lib", "C": "/var/cache", "L": "/var/log", "E": "/etc", "h": "/root"}


def installed(name: str, host: Host) -> Old | None:
    """The unit that systemd knows by this name, with its drop-ins; None where it knows none."""
    unit = name if name.endswith(".service") else f"{name}.service"
    if not UNIT_NAME.fullmatch(unit):
        return None
    shown = unit_properties(host, unit, "LoadState", "FragmentPath", "DropInPaths")
    if shown.get("LoadState") == "masked":
        raise Refused(tr("{unit} is masked", unit=unit), tr("unmask it first: systemctl unmask {unit}", unit=unit))
    if shown.get("LoadState") != "loaded" or not shown.get("FragmentPath"):
        return None
    files = tuple(Path(path) for path in (shown["FragmentPath"], *shown.get("DropInPaths", "").split()))
    return read(unit, files, host, is_installed=True)


def of_file(path: Path, host: Host) -> Old:
    """A unit that lies anywhere; one in a directory of systemd's is installed, and has drop-ins."""
    if str(path.parent) in PLACES and (found := installed(path.name, host)) and found.files[0] == path:
        return found
    return read(path.name, (path,), host, is_installed=False)


def read(unit: str, files: tuple[Path, ...], host: Host, *, is_installed: bool) -> Old:
    texts = [read_text(path, host) for path in files]
    service = Section(unit, [pair for text in texts for pair in directives(text, files[0])], host)
    starts = service.last_of("ExecStart")
    if len(starts) != 1:
        raise Refused(
            tr("{unit} has {count} ExecStart lines, of which one can be the vLLM server", unit=unit, count=len(starts))
            if starts
            else tr("{unit} has no ExecStart, of which one can be the vLLM server", unit=unit),
            tr("name the unit that starts vLLM"),
        )
    environment, environment_texts = service.environment()
    directory = Path(service.text("WorkingDirectory").lstrip("-") or "/")
    started = _command(service, starts[0], environment)
    found = Old((), environment, directory)
    serve = serve_words(started)
    launched = next((at for at, word in enumerate(started) if word.endswith("/vllm_launcher.py")), None)
    if launched is not None:
        return _ejected(unit, started[launched + 1 :], files, texts, host)
    if serve is None:
        inner = _script(started, found, host)
        if inner is None:
            raise Refused(
                tr("{unit} does not start vLLM", unit=unit), tr("name the unit whose ExecStart runs vllm serve")
            )
        serve, directory, environment = inner.words, inner.directory, dict(inner.environment)
        environment_texts += inner.texts
    return Old(
        words=serve,
        environment=environment,
        directory=directory,
        home=home(service.text("User") or "root"),
        unit=unit if is_installed else None,
        files=files if is_installed else (),
        texts=(*texts, *environment_texts),
        shown=_leaving(unit, files, texts),
        notes=()
        if is_installed
        else (tr("{path} is not installed, so no unit is stopped in its favour", path=files[0]),),
    )


def _leaving(unit: str, files: tuple[Path, ...], texts: list[str]) -> str:
    """What will not hold any more; a drop-in for all services, or a package's, holds for ours as well."""
    return "\n".join(text for path, text in zip(files, texts, strict=True) if path == files[0] or is_own(path, unit))


def _ejected(unit: str, words: list[str], files: tuple[Path, ...], texts: list[str], host: Host) -> Old:
    """A unit of ours that was let go: its keys are digests, and what it is started with is known."""
    check_unmanaged(host, Layout(unit.removesuffix(".service")))
    if "--" not in words:
        raise Refused(tr("{unit} was made by vllm-install", unit=unit), tr("vllm-install list says what it manages"))
    texts_of_keys, _, serve = vllm_flags.split(words)
    held = list(map(parse, texts_of_keys))
    pairs = [pair for text in texts[1:] for pair in directives(text, files[0])]  # what its admin added
    added = Section(unit, [("Service", "Environment", ""), *pairs], host).environment()[0]
    return Old(
        words=tuple(serve[1:]),
        environment=added,
        unit=unit,
        files=files,
        texts=tuple(texts),
        shown=_leaving(unit, files, texts),
        keys=tuple(replace(key, plain=None) for key in held if key.name != PROBE),
        is_ejected=True,
    )


def _script(words: list[str], surroundings: Old, host: Host) -> Old | None:
    """A shell in between: its script is read, never run."""
    name = Path(words[0]).name if words else ""
    if name in SHELLS and len(words) > 2 and re.fullmatch(r"-[a-z]*c", words[1]):
        return old_script.read(words[2], surroundings, host, tuple(words[4:]))
    at = next((at for at, word in enumerate(words) if at and not word.startswith("-")), 0) if name in SHELLS else 0
    if words[at:] and (at or words[0].endswith(".sh")):
        path = surroundings.directory / words[at]
        return old_script.read(read_text(path, host), surroundings, host, tuple(words[at + 1 :]))
    return None


def directives(text: str, path: Path) -> Iterator[tuple[str, str, str]]:
    """(section, name, value), continuations joined; a comment within one is left out."""
    section, pending = "", ""
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith(("#", ";")) or (not stripped and not pending):
            continue
        if line.endswith("\\"):
            pending += line[:-1] + " "
            continue
        whole, pending = (pending + line).strip(), ""
        if heading := re.fullmatch(r"\[([^\]]+)\]", whole):
            section = heading[1]
            continue
        name, equals, value = whole.partition("=")
        if whole and not equals:
            raise Refused(
                tr("{path}: {line!r}… is no line of a unit", path=path, line=name.strip()[:20]),
                f"systemd-analyze verify {path}",
            )
        yield section, name.strip(), value.strip()


class Section:
    """The section that says what is started, drop-ins included."""

    def __init__(
        self, unit: str, directives: list[tuple[str, str, str]], host: Host, name: str = "Service"
    ) -> None:  # fmt: skip
        self.unit = unit
        self.host = host
        self.given = [(directive, value) for section, directive, value in directives if section == name]
        if not self.given:
            raise Refused(
                tr("{unit} has no [{section}] section, so it starts nothing", unit=unit, section=name),
                tr("name the unit that starts vLLM"),
            )

    def last_of(self, directive: str) -> list[str]:
        """A list directive; an empty value forgets what came before it."""
        values: list[str] = []
        for name, value in self.given:
            if name == directive:
                values = [*values, value] if value else []
        return values

    def text(self, directive: str) -> str:
        return self.specifiers((self.last_of(directive) or [""])[-1])

    def specifiers(self, text: str) -> str:
        prefix, _, instance = self.unit.removesuffix(".service").partition("@")
        known = {"%": "%", "n": self.unit, "N": self.unit.removesuffix(".service"), "p": prefix, "i": instance,
                 "I": instance, **_DIRECTORIES}  # fmt: skip

        def value(match: re.Match[str]) -> str:
            if match[1] not in known:
                raise Refused(
                    tr(
                        "{unit} uses {specifier}, which only systemd itself can fill in",
                        unit=self.unit,
                        specifier=match[0],
                    ),
                    tr("write the value out in the unit: systemctl edit --full {unit}", unit=self.unit),
                )
            return known[match[1]]

        return re.sub(r"%(.)", value, text)

    def environment(self, directory: Path = Path("/")) -> tuple[dict[str, str], list[str]]:
        """Variables as the service sees them, and the texts of the files that some came from."""
        found: dict[str, str] = {}
        for value in self.last_of("Environment"):
            for word in words(self.specifiers(value), self.unit):
                name, equals, setting = word.partition("=")
                if equals:
                    found[name] = setting
        texts = []
        for value in self.last_of("EnvironmentFile"):
            path = directory / self.specifiers(value).removeprefix("-")
            if value.startswith("-") and not self.host.exists(path):
                continue
            texts.append(read_text(path, self.host))
            found |= variables(texts[-1])
        return found, texts


def variables(text: str) -> dict[str, str]:
    """An environment file: NAME=VALUE lines, with comments and quotes."""
    return {b.key: b.value for b in parse_stream(io.StringIO(text)) if b.key and b.value is not None}


def _command(service: Section, line: str, environment: Mapping[str, str]) -> list[str]:
    prefix = re.match(r"[@:+!|-]*", line)
    assert prefix is not None
    found = words(line[prefix.end() :], service.unit)
    if "@" in prefix[0]:
        del found[1:2]  # the name that the program is to see
    if ";" in found:
        raise Refused(
            tr("{unit} starts several commands in one ExecStart", unit=service.unit),
            tr("keep the one that starts vLLM"),
        )
    found = [service.specifiers(word) for word in found]
    if ":" in prefix[0]:
        return found
    return [each for word in found for each in expand(word, environment.get)]


def expand(word: str, value: Callable[[str, str], str]) -> list[str]:
    """$NAME as a word of its own becomes as many words as it holds; ${NAME} is replaced within its word."""
    if alone := re.fullmatch(r"\$([A-Za-z_]\w*)", word):
        return value(alone[1], "").split()
    return [re.sub(r"\$\$|\$\{([A-Za-z_]\w*)\}", lambda m: value(m[1], "") if m[1] else "$", word)]


def words(text: str, unit: str) -> list[str]:
    """Quotes begin and end anywhere in a word; backslashes escape as in C."""
    whole: list[str] = []
    word: str | None = None
    quote = ""
    rest = iter(text)
    for character in rest:
        if character == "\\":
            word = (word or "") + _escape(rest, unit)
        elif quote:
            quote, word = ("", word) if character == quote else (quote, (word or "") + character)
        elif character in "\"'":
            quote, word = character, word or ""
        elif character.isspace():
            whole += [word] if word is not None else []
            word = None
        else:
            word = (word or "") + character
    if quote:
        raise Refused(
            tr("{unit} has a line with an unbalanced {quote}", unit=unit, quote=quote),
            tr("mend it: systemctl edit --full {unit}", unit=unit),
        )
    return whole + ([word] if word is not None else [])


def _escape(rest: Iterator[str], unit: str) -> str:
    character = next(rest, "")
    lengths = {"x": 2, "u": 4, "U": 8}
    if character in lengths:
        digits = "".join(next(rest, "") for _ in range(lengths[character]))
        try:
            return chr(int(digits, 16))
        except (ValueError, OverflowError):
            raise Refused(
                tr("{unit} holds an escape that is none: \\{character}", unit=unit, character=character),
                f"systemctl edit --full {unit}",
            ) from None
    return _ESCAPES.get(character, character)
