"""Runs vLLM, or SGLang (`-- sglang …`), as a systemd service; stdlib only, because it runs on the engine's Python.

    launch --api-key KEY… -- serve MODEL …   ExecStart=      write the key digests, listen, become the supervisor
    reload --api-key KEY… -- serve MODEL …   ExecReload=     the same command: replace the key digests of what runs;
                                                             another: start it beside, and let it take over
    check -- serve MODEL …                   ExecStartPre=+  name whoever holds the port or the GPU's memory

The supervisor is the unit's main process. Below it are vLLM with the guard inside, and the watcher beside it. The
launcher listens on the port before any of them runs, or takes the socket that systemd kept, and hands it to them.
"""

from __future__ import annotations

import calendar
import contextlib
import errno
import glob
import hashlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

sys.dont_write_bytecode = True  # `check` runs as root, and nobody would remove what it leaves here

if TYPE_CHECKING or __package__:
    from installer.runtime import vllm_command, vllm_door, vllm_flags, vllm_gpus, vllm_group, vllm_handover, vllm_hold
    from installer.runtime.vllm_port import (
        BAD_CONFIGURATION,
        BUSY,
        TRY_LATER,
        Refused,
        is_kept,
        listen,
        not_free,
        runtime_directory,
    )
    from installer.runtime.vllm_systemd import command_of, descendants, notify, own_unit, say, seconds, systemctl, write
    from installer.runtime.vllm_words import FAMILIES, VLLM, Words
else:
    import vllm_command
    import vllm_door
    import vllm_flags
    import vllm_gpus
    import vllm_group
    import vllm_handover
    import vllm_hold
    from vllm_port import BAD_CONFIGURATION, BUSY, TRY_LATER, Refused, is_kept, listen, not_free, runtime_directory
    from vllm_systemd import command_of, descendants, notify, own_unit, say, seconds, systemctl, write
    from vllm_words import FAMILIES, VLLM, Words

STANDBY_MEMORY = 2 << 30  # bytes
UNITS, MADE_BY = "/etc/systemd/system", b"# Rendered by vllm-install "
KEY = re.compile(
    r"(?:(?P<name>[a-z0-9_-]+)(?::(?P<role>metrics|inference|admin))?=)?"
    r"(?:sha256:(?P<digest>[0-9a-fA-F]{64})|(?P<plain>(?!sha256:)[!-9;-?A-~]{16,}))"
    r"(?:@(?P<expiry>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ))?"
)
KEY_FORM = "expected [NAME[:metrics|:inference|:admin]=]sha256:64-HEX-DIGITS[@2026-11-21T12:00:00Z], or the key itself"

# What is systemd's word to one process, and says nothing of what is to run.
SYSTEMD_S_OWN = (
    "MAINPID", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "CREDENTIALS_DIRECTORY", "INVOCATION_ID",
    "JOURNAL_STREAM", "SYSTEMD_EXEC_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "FDSTORE",
    "MEMORY_PRESSURE_WATCH", "MEMORY_PRESSURE_WRITE",
)  # fmt: skip


# Keys


class Key(NamedTuple):
    name: str
    role: str
    digest: str
    expiry: str

    @property
    def argument(self) -> str:
        return f"{self.name}:{self.role}=sha256:{self.digest}" + (f"@{self.expiry}" if self.expiry != "-" else "")


def parse_key(text: str, position: int) -> Key:
    """Never quotes what it was given: that may be a key with a slip in it."""
    match = KEY.fullmatch(text)
    if not match:
        raise Refused(f"--api-key number {position} is malformed: {KEY_FORM}")
    expiry = match["expiry"] or "-"
    if expiry != "-":
        try:
            calendar.timegm(time.strptime(expiry, "%Y-%m-%dT%H:%M:%SZ"))
        except ValueError:
            raise Refused(f"--api-key number {position} expires on a day that does not exist: {expiry}") from None
    digest = match["digest"] or hashlib.sha256(match["plain"].encode()).hexdigest()
    return Key(match["name"] or "default", match["role"] or "inference", digest.lower(), expiry)


def read_keys(verb: str, words: list[str]) -> tuple[list[Key], list[str]]:
    """The keys and what follows them; a key in clear is hashed, and gone from our arguments before anything else."""
    try:
        texts, strays, serve = vllm_flags.split(words)
        if strays:
            raise Refused(f"argument {strays[0]} before the -- is not --api-key")
        keys = [parse_key(text, number) for number, text in enumerate(texts, 1)]
    except Refused as refused:
        # The journal stores the arguments of whoever writes to it, and these may hold a key.
        become(["refuse", str(refused)])
    if any("sha256:" not in text for text in texts):
        hashed = [word for key in keys for word in ("--api-key", key.argument)]
        become([verb, *hashed, "--", *serve])
    if not any(key.role != "metrics" for key in keys):
        raise Refused("no inference key among the --api-key arguments: a server that nobody may ask is a mistake")
    return keys, serve


def become(arguments: list[str]) -> NoReturn:
    os.execv(sys.executable, [sys.executable, os.path.abspath(__file__), *arguments])


def probe_key() -> str:
    """What the watcher asks with; systemd before 247 knows no credentials, and then there is none."""
    try:
        with open(os.path.join(os.environ["CREDENTIALS_DIRECTORY"], "probe-key")) as file:
            return file.read().strip()
    except (KeyError, OSError):
        raise Refused("no probe key: the unit needs LoadCredential=probe-key:PATH (systemd 247 or newer)") from None


def digest_in_force() -> str:
    """Of the same key, from the running service: systemd gives ExecReload= no credentials (252)."""
    path = os.path.join(runtime_directory(), "keys")
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return file.readline(4096).split()[2].decode("ascii")
    except (OSError, IndexError, ValueError):
        raise Refused("the service does not run: there are no keys to replace") from None


def write_keys(keys: list[Key], probe: str) -> None:
    write(os.path.join(runtime_directory(), "keys"), key_lines(keys, probe))


def key_lines(keys: list[Key], probe: str) -> str:
    lines = [
        f"{key.name} {key.role} {key.digest} {key.expiry}\n" for key in (Key("probe", "inference", probe, "-"), *keys)
    ]
    return "".join(dict.fromkeys(lines))


def reload(words: list[str]) -> None:
    keys, serve = read_keys("reload", words)
    probe = digest_in_force()
    if not serve or not take_over(serve, key_lines(keys, probe)):
        write_keys(keys, probe)
        time.sleep(0.1)  # the guard looks every 0.05 s; `systemctl reload` returns when the new keys are in force


# Taking the place of what runs


def take_over(serve: list[str], keys: str) -> bool:
    """Whether something else was to run than what runs: then it does now, or this has failed."""
    connection = vllm_handover.connect(runtime_directory()) if holding_time() else None
    if connection is None:
        return False
    vllm_handover.send(connection, "run", run=run_digest(serve))
    answer, descriptors = vllm_handover.receive(connection)
    if not answer:
        raise Refused("another change is being taken over", TRY_LATER)
    if answer["is"] == "same":
        return False
    os.environ["WATCHDOG_USEC"] = answer["watchdog"]  # which systemd tells only what it starts as the main process
    try:
        why = succeed(next_task(serve, keys, *descriptors), connection)
    except Refused as refused:
        vllm_handover.send(connection, "failed", why=str(refused))
        vllm_handover.receive(connection)
        raise
    if why:
        raise Refused(why, TRY_LATER)
    return True


def next_task(
    serve: list[str], keys: str, listener: int, key: int, record: int, door: int | None = None
) -> dict[str, object]:
    check_command(serve)
    flags = flags_of(serve)
    host, port = address(flags)
    held, is_late, taken = socket.socket(fileno=listener), False, listener
    if is_moved := not vllm_hold.is_at(held, host, port):
        try:
            taken = vllm_hold.listen(host, port).detach()
        except OSError as error:
            # The old address may be in the way of one that covers it.
            is_late = error.errno == errno.EADDRINUSE and held.getsockname()[1] == port
            if not is_late:
                raise not_free(host, port, error) from None
    held.detach()
    stands_by = words_of(serve).stands_by and not is_late and has_room()
    return {
        **vllm_command.engine(serve, words_of(serve), flags, runtime_directory()),
        "run": run_digest(serve), "host": host, "port": port, "hold": holding_time(),
        "listener": taken, "door": door, "key": key, "record": record, "keys": keys, "is_moved": is_moved,
        "is_late": is_late,
        "stands_by": stands_by,
    }  # fmt: skip


def has_room() -> bool:
    """For an engine that is imported and has nothing loaded yet, beside the one that runs."""
    with contextlib.suppress(OSError), open("/proc/meminfo") as file:
        free = re.search(r"^MemAvailable: +(\d+) kB", file.read(), re.MULTILINE)
        if free and int(free[1]) < STANDBY_MEMORY >> 10:
            said = f"{int(free[1]) >> 10} MiB of memory are free, too little for the next engine beside this one"
            say(f"{said}: it is started once this one is gone", 4)
            return False
    return True


def succeed(task: Mapping[str, object], connection: socket.socket) -> str:
    """Start the next supervisor, no child of ours, as it stays; why it has not taken over, "" where it has."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        if supervisor := os.fork():
            os.write(write, f"{supervisor}\n".encode())
            os._exit(0)
        os.setsid()
        supervise({**task, "predecessor": connection.fileno(), "verdict": write})
    os.close(write)
    connection.close()
    os.waitpid(child, 0)
    said = verdict(read)
    return "" if said == "done" else said or "the supervisor of the next engine has died"


def verdict(report: int) -> str:
    """What the next supervisor says at its end; until then it is heard all the while. A silent one is ended.

    The one before it hears of that by the end of their connection, and goes on or starts again what ran.
    """
    said = b""
    while select.select([report], [], [], seconds("SILENCE_SEC"))[0]:
        data = os.read(report, 4096)
        if not data:
            return "\n".join(line for line in lines_of(said) if line != vllm_handover.PULSE and not line.isdigit())
        said += data
    pid = next((int(line) for line in lines_of(said) if line.isdigit()), 0)
    for each in (*descendants(pid), pid) if pid else ():
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
    return "the supervisor of the next engine says nothing"


def lines_of(said: bytes) -> list[str]:
    return said.decode(errors="replace").split("\n")[:-1]


def run_digest(serve: list[str]) -> str:
    """Of what would run: another one means another engine."""
    environment = sorted((name, value) for name, value in os.environ.items() if name not in SYSTEMD_S_OWN)
    return hashlib.sha256(
        json.dumps([sys.executable, os.path.abspath(__file__), serve, environment]).encode()
    ).hexdigest()


# Becoming the supervisor


def launch(words: list[str]) -> NoReturn:
    keys, serve = read_keys("launch", words)
    check_command(serve)
    check_gpus()
    probe = probe_key()
    write_keys(keys, hashlib.sha256(probe.encode()).hexdigest())
    flags = flags_of(serve)
    host, port = address(flags)
    group = group_of(serve)
    has_api = not group or group["rank"] == 0
    hold = holding_time() if has_api else 0
    listener = vllm_hold.take(host, port, is_wanted=hold > 0) or (listen(host, port) if has_api else socket.socket())
    task = {
        **vllm_command.engine(serve, words_of(serve), flags, runtime_directory()),
        "run": run_digest(serve), "host": host, "hold": hold, "listener": listener.detach(), "group": group,
        "door": vllm_door.take(is_wanted=hold > 0) if has_api else None, "key": in_memory("key", probe),
        "record": next(iter(vllm_hold.kept(vllm_hold.RECORD)), None),
    }  # fmt: skip
    supervise(task)


def holding_time() -> int:
    try:
        return vllm_hold.limit()
    except ValueError as error:
        raise Refused(str(error)) from None


def group_of(serve: list[str]) -> dict[str, Any] | None:
    try:
        group = vllm_group.task(serve)
    except (KeyError, OSError, ValueError) as error:
        raise Refused(f"a member of a group that cannot be one: {error}") from None
    if group and group["rank"] == 0 and not holding_time():
        raise Refused("HOLD=0: the head of a group waits for the others, and callers with it")
    return group


def words_of(serve: list[str]) -> Words:
    return FAMILIES[serve[0]] if serve and serve[0] in FAMILIES else VLLM


def flags_of(serve: list[str]) -> dict[str, str]:
    return vllm_flags.given(serve, words_of(serve))


def supervise(task: Mapping[str, object]) -> NoReturn:
    """As another program: its name says that the keys are written, and nothing of theirs is in its memory."""
    described = in_memory("task", json.dumps(task))
    for descriptor in (described, *map(task.get, ("listener", "door", "key", "record", "predecessor", "verdict"))):
        if isinstance(descriptor, int):
            os.set_inheritable(descriptor, True)
    # Not -I, which would keep it from the files beside it.
    program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "vllm_supervisor.py")
    os.execv(sys.executable, [sys.executable, "-EsS", program, str(described)])


def in_memory(name: str, text: str) -> int:
    descriptor = os.memfd_create(name)
    os.write(descriptor, text.encode())
    return descriptor


def check_command(serve: list[str]) -> None:
    if not serve or serve[0] not in FAMILIES:
        raise Refused("expected `-- serve MODEL` after the keys")
    of = words_of(serve)
    if found := vllm_flags.refused(serve, of):
        raise Refused(f"{found[0]} cannot be used: {found[1]}")
    for name, why in of.variables.items():
        if os.environ.get(name, "0").lower() not in ("", "0", "false"):
            raise Refused(f"{name} is set: {why}, so it is refused")


def check_gpus() -> None:
    """Refused once, with the reason, by the main process: of no other does systemd heed the exit status."""
    own = own_gpus()
    if not any(name.startswith(("GPU-", "MIG-")) for name in own):
        return
    said = vllm_gpus.ask(vllm_gpus.WITHIN)
    if why := vllm_gpus.unfit(own, said):
        raise Refused(why)
    if not any(each.get("complete") for each in said):
        say("the GPUs' driver did not answer before this start", 4)


def own_gpus() -> list[str]:
    return os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")


def address(flags: Mapping[str, str]) -> tuple[str, int]:
    port = flags.get("--port", "8000")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise Refused(f"--port {port} is not a port")
    return flags.get("--host", "0.0.0.0"), int(port)


# Custody of port and GPU


def check(words: list[str]) -> None:
    """As root, before the sandbox: it can name processes that the service itself cannot see."""
    end_replicas(own_unit().removesuffix(".service"))
    host, port = address(flags_of(vllm_flags.split(words)[2]))
    try:
        listen(host, port).close()
    except Refused as refused:
        if refused.status != BUSY or not is_kept(port):
            raise
    if place := os.environ.get(vllm_door.PLACE):
        vllm_door.make(place)
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory,gpu_uuid", "--format=csv,noheader"]
    own = own_gpus()
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        shown = subprocess.run(query, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20).stdout
        for pid, memory, uuid in re.findall(r"(\d+), (.+), (\S+)", shown):
            # Only what is named by uuid can be told apart: a number counts among those that CUDA shows.
            if uuid in own or not all(name.startswith("GPU-") for name in own):
                say(f"GPU memory is held by pid {pid} ({command_of(int(pid))}): {memory}", 5)


def end_replicas(service: str) -> None:
    """Those that stood behind a gateway in this unit's place make way for it; an admin's own of such a name do not."""
    found = glob.glob(os.path.join(UNITS, f"{glob.escape(service)}@[1-9]*.service")) if service else []
    if ours := sorted(os.path.basename(unit) for unit in found if is_ours(unit)):
        systemctl("stop", *ours, within=None)


def is_ours(unit: str) -> bool:
    with contextlib.suppress(OSError), open(unit, "rb") as file:
        return file.readline(200).startswith(MADE_BY)
    return False


def refuse(words: list[str]) -> None:
    raise Refused(" ".join(words))


def main(words: list[str]) -> int:
    verbs = {"launch": launch, "reload": reload, "check": check, "refuse": refuse}
    try:
        if not words or words[0] not in verbs:
            raise Refused(f"expected one of {', '.join(verbs)}")
        verbs[words[0]](words[1:])
    except Refused as refused:
        say(str(refused), 3)
        notify(f"STATUS=refused: {refused}")
        if refused.status == BAD_CONFIGURATION:
            vllm_hold.refuse_kept()
        return refused.status
    except OSError as error:
        say(f"cannot {words[0]}: {error}", 3)
        notify(f"STATUS=cannot {words[0]}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
