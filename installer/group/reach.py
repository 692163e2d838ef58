"""The near end: a connection to each host of a group, asked one after the other or all at once.

What a host says is another's text: lines of bounded length, checked for their form, shown on lines that bear its name.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import IO, Any, Protocol, TypeVar

from installer.base.errors import Exit, InstallError, Interrupted, Refused
from installer.base.host import ENDS_WITHIN, Host
from installer.base.language import choose, tr
from installer.base.report import Report
from installer.group import carry, ssh
from installer.group.session import BEATS_EVERY, READY
from installer.runtime.vllm_text import one_line
from installer.spec.group import Peer
from installer.spec.record import UNREADABLE, read_as
from installer.units.soaking import environment_of_tool

T = TypeVar("T")
LONGEST = 1 << 22  # bytes of a line
LONGEST_COMPLAINT = 2000  # bytes of one on standard error
GREETINGS = 50  # lines that a login shell may say before us


class Lost(ssh.Unreachable):
    """The connection ended before the answer."""


class Far(Protocol):
    """A host that can be asked. Raises Lost where it is gone, and what it refuses as an error of its own."""

    name: str

    def ask(self, do: str, **given: Any) -> Any: ...

    def stop(self) -> None:
        """End what it does now; the answer says how that ended."""


class Connection:
    """To a session there, over ssh or, on this host itself, through a pipe."""

    def __init__(self, name: str, service: str, process: subprocess.Popen[bytes], report: Report) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self.name, self._service, self._report = name, service, report
        self._goes, self._comes = process.stdin, process.stdout
        self._writing, self._ended = threading.Lock(), threading.Event()
        self._complaints: list[str] = []
        self._pours = False  # it sends bytes, however many
        self.here = False  # it is this host
        threading.Thread(target=self._hear, args=(process.stderr,), daemon=True).start()

    def open(self, language: str, *, here: bool, end: str = carry.SESSION) -> None:
        """Bring the tool there if it is not, and see that it answers."""
        if not here:
            self._write(carry.greeting(language, end))
            word, _, told = self._line_of((carry.HAVE, carry.WANT, carry.NO_PYTHON)).partition(" ")
            if word == carry.NO_PYTHON:
                why = tr("{name}: it has no Python of 3.10 or newer", name=self.name)
                raise Refused(why, f"ssh {self.name} sudo apt install python3")
            if word == carry.WANT:
                carry.check_arch(self.name, told)
                self._report.note(tr("{name}: bringing the tool there", name=self.name))
                self._write(carry.parcel())
        if self._said(self._line_of(("{",))).get("ready") != READY:
            raise self._lost()
        self.here, self._pours = here, end == carry.GIVE
        if end == carry.SESSION:  # what else is sent there are bytes that mean something
            threading.Thread(target=self._beat, daemon=True).start()

    def _line_of(self, beginnings: tuple[str, ...]) -> str:
        """The first line of ours; a login shell may have said something before it."""
        for _ in range(GREETINGS):
            line = self._read()
            if line.startswith(beginnings):
                return line
        raise self._lost()

    def ask(self, do: str, **given: Any) -> Any:
        self.tell({"do": do, "service": self._service, **given})
        return self.hear()

    def tell(self, request: Mapping[str, Any]) -> None:
        self._write(json.dumps(request).encode() + b"\n")

    def hear(self) -> Any:
        """The next answer."""
        while True:
            try:
                said = self._said(self._read())
                if "note" in said:
                    self._report.note(f"{self.name}: {one_line(str(said['note']))}")
                elif "error" in said:
                    raise refused(self.name, said["error"])
                else:
                    return said["answer"]
            except (ValueError, KeyError, TypeError, AttributeError):
                raise puzzling(self.name) from None

    def take(self, most: int) -> bytes:
        """Some of the bytes that come, where it is no lines that come any more; Lost where none do."""
        if not (found := self._comes.read1(most)):  # type: ignore[attr-defined]
            raise self._lost()
        return bytes(found)

    def give(self, data: memoryview) -> None:
        self._write(data)

    def _said(self, line: str) -> dict[str, Any]:
        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            raise puzzling(self.name) from None
        if not isinstance(said, dict):
            raise puzzling(self.name)
        return said

    def stop(self) -> None:
        with contextlib.suppress(Lost):
            self._write(b'{"do": "stop"}\n')

    def close(self) -> None:
        """What it still undoes is waited for, and not for ever."""
        with contextlib.suppress(OSError), self._writing:
            self._goes.close()
        if self._pours:  # else it would go on to, and nobody reads them any more
            self._comes.close()
        self._ended.wait(ENDS_WITHIN)

    def _read(self) -> str:
        line = self._comes.readline(LONGEST)
        if not line.endswith(b"\n"):
            raise self._lost()
        return line.decode(errors="replace").rstrip("\n")

    def _write(self, data: bytes | memoryview) -> None:
        try:
            with self._writing:
                self._goes.write(data)
                self._goes.flush()
        except (OSError, ValueError):
            raise self._lost() from None

    def _lost(self) -> Lost:
        self._ended.wait(1.0)  # until all that it complained of is here
        why = ssh.explain(self.name, "\n".join(self._complaints), tr("the connection ended"))
        return Lost(why.message, why.hint)

    def _hear(self, pipe: IO[bytes]) -> None:
        for line in iter(lambda: pipe.readline(LONGEST_COMPLAINT), b""):
            self._complaints.append(line.decode(errors="replace"))
            del self._complaints[:-20]
        self._ended.set()

    def _beat(self) -> None:
        while not self._ended.wait(BEATS_EVERY):
            with contextlib.suppress(Lost):
                self._write(b"\n")


def puzzling(name: str) -> Lost:
    return Lost(tr("{name}: it says what nobody understands", name=name), f"ssh {name} true")


def understood(name: str, kind: type[T], answer: object) -> T:
    """What a host answered, in the form that it has to have: nothing of another one goes any further."""
    try:
        return read_as(kind, answer)
    except UNREADABLE:
        raise puzzling(name) from None


def data_of(name: str, text: str) -> object:
    """What a verb printed on a host for a program."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise puzzling(name) from None


def known(code: int) -> Exit:
    """The status that a verb ended with on a host; a number that is none of ours could stand for any."""
    return Exit(code) if code in list(Exit) else Exit.BUG


def refused(name: str, error: Mapping[str, Any]) -> InstallError:
    """What a host refused, on lines that bear its name."""
    lines = [one_line(line) for line in str(error["message"]).splitlines()[:30]]
    text = "\n".join(tr("{what}: {why}", what=name, why=line) for line in lines)
    hint = one_line(str(error["hint"]))
    hint = tr("on {name}: {hint}", name=name, hint=hint) if hint else ""
    return InstallError(text, hint, known(error["code"]))


Beside = Callable[[Mapping[str, str]], AbstractContextManager[dict[str, Connection]]]


def nobody(ends: Mapping[str, str]) -> AbstractContextManager[dict[str, Connection]]:
    return nullcontext({})


class Team:
    """The hosts that answer, and why the others do not.

    `beside` makes further connections for the length of a block: to whom, and what is at the far end. `here` is the
    one of them that is this host, if one is.
    """

    def __init__(
        self,
        far: Iterable[Far],
        lost: Mapping[str, InstallError] | None = None,
        beside: Beside = nobody,
        here: str | None = None,
    ) -> None:
        self.far = {each.name: each for each in far}
        self.lost = dict(lost or {})
        self.beside, self.here = beside, here

    def one(self, name: str, do: str, **given: Any) -> Any:
        return self.each(do, [name], **given)[name]

    def _ask(self, name: str, do: str, given: Mapping[str, Any]) -> Any:
        """One that is lost meanwhile is asked no more."""
        try:
            if name in self.lost:
                raise self.lost[name]
            return self.far[name].ask(do, **given)
        except Lost as gone:
            self.lost[name] = gone
            return gone
        except InstallError as error:
            return error

    def try_each(self, do: str, names: Iterable[str] | None = None, **given: Any) -> dict[str, Any]:
        return self.try_each_of(do, dict.fromkeys(self.far if names is None else names, given))

    def try_each_of(self, do: str, asked: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The answers of all, asked at the same time; what went wrong stands in the place of an answer.

        Ctrl-C ends what they do, and they are waited for: each has undone it then.
        """
        with ThreadPoolExecutor(max(1, len(asked))) as pool:
            futures = {name: pool.submit(self._ask, name, do, given) for name, given in asked.items()}
            try:
                return {name: future.result() for name, future in futures.items()}
            except Interrupted:
                for name in self.far.keys() & asked.keys():
                    self.far[name].stop()
                raise

    def each(self, do: str, names: Iterable[str] | None = None, **given: Any) -> dict[str, Any]:
        """The answers of all, or all that went wrong at once."""
        found = self.try_each(do, names, **given)
        raise_all(error for error in found.values() if isinstance(error, InstallError))
        return found


def raise_all(errors: Iterable[InstallError]) -> None:
    """One error for all, with the command that helps behind each."""
    found = list(errors)
    if not found:
        return
    if len(found) == 1:
        raise found[0]
    codes = {error.exit_code for error in found}
    helped = [tr("{message} (help: {hint})", message=e.message, hint=e.hint) if e.hint else e.message for e in found]
    raise InstallError("\n".join(helped), "", codes.pop() if len(codes) == 1 else Exit.REFUSED)


def _is_here(peer: Peer, host: Host) -> bool:
    return peer.machine == ssh.machine_id(host) if peer.machine else ssh.is_here(peer.name, host)


@contextmanager
def reached(peers: Iterable[Peer], service: str, host: Host, report: Report) -> Iterator[Team]:
    """Connections to all of them for the length of a block, made at the same time."""
    known = {peer.name: peer for peer in peers}

    @contextmanager
    def beside(ends: Mapping[str, str]) -> Iterator[dict[str, Connection]]:
        with _connected(ends, known, service, host, report) as (found, faults):
            raise_all(faults.values())
            yield found

    with _connected(dict.fromkeys(known, carry.SESSION), known, service, host, report) as (found, faults):
        here = next((name for name, each in found.items() if each.here), None)
        yield Team(found.values(), faults, beside, here)


@contextmanager
def _connected(
    ends: Mapping[str, str], peers: Mapping[str, Peer], service: str, host: Host, report: Report
) -> Iterator[tuple[dict[str, Connection], dict[str, InstallError]]]:
    """To each, and what is to be at the far end; who is no peer is this host itself."""
    language = choose(sys.argv, os.environ)
    with ExitStack() as held:

        def begun(name: str, end: str) -> tuple[Connection, bool]:
            """In this thread, which lives as long as the block: with the one that began it a process would end."""
            here = name not in peers or _is_here(peers[name], host)
            argv = carry.local_command(end) if here else ssh.command(name, carry.remote_command())
            env = {**environment_of_tool(), "LANGUAGE": language} if here else ssh.environment()
            process = held.enter_context(host.conversing(*argv, env=env))
            connection = Connection(name, service, process, report)
            held.callback(connection.close)
            return connection, here

        def opened(connection: Connection, here: bool, end: str) -> InstallError | None:
            try:
                connection.open(language, here=here, end=end)
            except InstallError as error:
                return error
            return None

        connections = [(*begun(name, end), end) for name, end in ends.items()]
        pool = ThreadPoolExecutor(max(1, len(connections)))
        try:
            errors = list(pool.map(lambda each: opened(*each), connections))
        finally:
            pool.shutdown(wait=False)  # after Ctrl-C nobody waits for a host that says nothing
        faults = {each.name: error for (each, *_), error in zip(connections, errors, strict=True) if error}
        yield {each.name: each for each, *_ in connections if each.name not in faults}, faults
