"""The gateway's main process: HAProxy on the socket that systemd keeps, started anew when it dies; no engine notices.

    run --host H --port P [--fallback URL --keys UNIT [--fallback-model NAME]] CONFIG   ExecStart=
    reload [--certificate FILE --key FILE] CONFIG                                        ExecReload=+

Reload runs as root: what changed of configuration and certificate comes into force, or all stays as it is.

Were HAProxy the main process, its death would be systemd's to mend, which would start all replicas anew. Stdlib only.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

sys.dont_write_bytecode = True  # `reload` runs as root, and nobody would remove what it leaves here

if TYPE_CHECKING:
    from installer.runtime import vllm_certificate, vllm_fallback, vllm_hold
    from installer.runtime.vllm_haproxy import SOCKET, ask, began, worker
    from installer.runtime.vllm_port import BAD_CONFIGURATION, TRY_LATER, Refused, listen, runtime_directory
    from installer.runtime.vllm_systemd import notify, say, seconds, stat, write
    from installer.runtime.vllm_text import one_line
else:
    import vllm_certificate
    import vllm_fallback
    import vllm_hold
    from vllm_haproxy import SOCKET, ask, began, worker
    from vllm_port import BAD_CONFIGURATION, TRY_LATER, Refused, listen, runtime_directory
    from vllm_systemd import notify, say, seconds, stat, write
    from vllm_text import one_line

SERVERS, CERTIFICATE, PEERS = "servers", "tls.pem", "peers.pem"  # in the runtime directory
STARTS_WITHIN = 30.0  # seconds
LOOK_EVERY = 0.05
READ_WITHIN = 2.0  # seconds from its reading of the configuration to the worker that goes by it
AGAIN_AFTER = 1.0  # seconds from the death of the HAProxy for large requests to its next start
KEEPER = {"KEEPER": "yes"}  # tells a HAProxy which half of the configuration is meant for it
LONGEST = 1 << 20  # bytes of a certificate's file
SOON, MOST_DEATHS = 10.0, 5  # so many deaths, each within that of its start, are not mended by another start
# A replica, or another host. HAProxy writes the address of what has a path as "-", and its port as 0.
SERVER = re.compile(r'^    server (?:(r\d+) "unix@|(\S+) (\d+(?:\.\d+){3}):(\d+)( ssl)?)', re.MULTILINE)
WAITS = re.compile(r"^    server wait ", re.MULTILINE)
# As HAProxy writes down its servers: this one is down until its first check says something else.
DOWN = "3 members {number} {name} {address} 0 0 1 1 1 6 3 0 6 0 0 0 - {port} - {tls} 0 - - 0\n"
FIELDS = (
    "be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight "
    "srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state "
    "bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr "
    "srv_agent_addr srv_agent_port"
)
BLOCK = "-----BEGIN {0}-----.+?-----END {0}-----"


class Gateway:
    """HAProxy as a child, as long as nobody tells it to end."""

    def __init__(self, config: str, listener: socket.socket) -> None:
        self.config, self.listener = config, listener
        self.runtime = runtime_directory()
        self.process: subprocess.Popen[bytes] | None = None
        self.keeper: subprocess.Popen[bytes] | None = None
        self.is_ending = False

    def run(self) -> int:
        signal.signal(signal.SIGTERM, self.end)
        signal.signal(signal.SIGINT, self.end)
        signal.signal(signal.SIGHUP, self.renew)
        signal.signal(signal.SIGALRM, self.hurry)
        write(self.at(SERVERS), states(read(self.config).decode(), ""))
        threading.Thread(target=self.keep, daemon=True).start()
        deaths = 0
        while True:
            began = time.monotonic()
            status = self.live()
            if self.is_ending:
                signal.alarm(0)  # at its own end Python takes no note of it any more, and it would be a death by signal
                if self.keeper:
                    self.keeper.kill()
                return 0
            deaths = deaths + 1 if time.monotonic() - began < SOON else 1
            say(f"HAProxy has ended with {status}", 3)
            if deaths >= MOST_DEATHS:
                return TRY_LATER

    def live(self) -> int:
        """From one start of HAProxy to its end."""
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LISTENER": str(self.listener.fileno())}
        self.process = subprocess.Popen(
            ["haproxy", "-W", "-f", self.config], env=environment, pass_fds=[self.listener.fileno()],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if self.is_ending:
            self.end()
        if self.is_up():
            notify("READY=1", "STATUS=ready")
        return self.process.wait()

    def keep(self) -> None:
        """The other HAProxy, by which the large go. Where it is not, they go the way of all, and are not repeated."""
        environment = {"PATH": os.environ.get("PATH", os.defpath), **KEEPER}
        while not self.is_ending:
            with contextlib.suppress(OSError):
                words = ["haproxy", "-db", "-f", self.config]
                self.keeper = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL)
                status = self.keeper.wait()
                if not self.is_ending:
                    say(f"HAProxy for large requests has ended with {status}", 4)
            time.sleep(AGAIN_AFTER)

    def is_up(self) -> bool:
        assert self.process is not None
        end = time.monotonic() + STARTS_WITHIN
        while self.process.poll() is None and time.monotonic() < end:
            if worker(self.at(SOCKET)) and minds(self.process.pid, signal.SIGUSR2):
                return True
            time.sleep(LOOK_EVERY)
        return False

    def end(self, *_: object) -> None:
        """Nobody is let in any more; whoever is in is served, as long as there is time for that."""
        self.is_ending = True
        signal.alarm(max(1, int(seconds("DRAIN"))))
        if self.process:
            self.process.send_signal(signal.SIGUSR1)

    def hurry(self, *_: object) -> None:
        if self.process:
            self.process.send_signal(signal.SIGTERM)

    def renew(self, *_: object) -> None:
        """The next worker knows of each replica what this one knows: whether it is up, and whether it was taken out."""
        with contextlib.suppress(OSError):
            known = ask(self.at(SOCKET), "show servers state members")
            write(self.at(SERVERS), states(read(self.config).decode(), known))
        if self.process:
            self.process.send_signal(signal.SIGUSR2)

    def at(self, name: str) -> str:
        return os.path.join(self.runtime, name)


def minds(pid: int, number: int) -> bool:
    """Whether a process catches the signal. The master does so after its worker answers already: one that comes before,
    to stop or to reload, is lost."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as file:
        caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", file.read(), re.MULTILINE)
        return caught is not None and bool(int(caught[1], 16) >> number - 1 & 1)
    return False


def states(config: str, known: str) -> str:
    """What is known of each server at the same address; the others are down until a check says something else.

    Where callers cannot wait, they are not: whoever asks may as well try.
    """
    rows = [line.split() for line in known.splitlines()]
    lines = {(row[3], row[18]): " ".join(row) + "\n" for row in rows if len(row) > 18}
    waits, found = bool(WAITS.search(config)), dict.fromkeys(SERVER.findall(config))
    servers = [(replica or host, at or "-", port or "0", int(bool(tls))) for replica, host, at, port, tls in found]
    text = "".join(
        lines.get((name, port))
        or (DOWN.format(name=name, number=number, address=at, port=port, tls=tls) if waits else "")
        for number, (name, at, port, tls) in enumerate(servers, 1)
    )
    return f"1\n# {FIELDS}\n{text}"


def run(options: argparse.Namespace) -> int:
    listener = vllm_hold.take(options.host, options.port, is_wanted=True) or listen(options.host, options.port)
    vllm_hold.keep(vllm_hold.SOCKET, listener.fileno())
    vllm_hold.forget(vllm_hold.RECORD)  # of an engine that had the socket before: who waits does so for us from now on
    credentials = os.environ.get("CREDENTIALS_DIRECTORY", "")
    certificate = os.path.join(credentials, CERTIFICATE)
    if credentials and os.path.exists(certificate):
        write(os.path.join(runtime_directory(), CERTIFICATE), pem(certificate, f"{certificate}.key"))
    peers = os.path.join(credentials, PEERS)
    if credentials and os.path.exists(peers):
        write(os.path.join(runtime_directory(), PEERS), pem(peers, peers))
    if options.fallback:
        vllm_fallback.serve(runtime_directory(), options.fallback, options.fallback_model, options.keys)
    return Gateway(options.config, listener).run()


# Reload


def reload(options: argparse.Namespace) -> int:
    """Everything is looked at before anything is changed."""
    runtime = runtime_directory()
    path = os.path.join(runtime, SOCKET)
    content = pem(options.certificate, options.key) if options.certificate else ""
    before = worker(path)
    if not before:
        raise Refused("the gateway does not run, or does not answer", TRY_LATER)
    if os.stat(options.config).st_ctime > began(stat(before)) - READ_WITHIN:
        check(options.config, runtime)
        os.kill(int(os.environ["MAINPID"]), signal.SIGHUP)
        wait_for_another(path, before)
    if content:
        replace_certificate(path, os.path.join(runtime, CERTIFICATE), content)
    return 0


def check(config: str, runtime: str) -> None:
    """HAProxy's own opinion, as the user who will run it: what lies in that user's directory, root does not open."""
    owner = os.stat(runtime)
    identity = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": ()} if os.geteuid() == 0 else {}
    with socket.socket() as stand_in:
        for half in ({}, KEEPER):
            environment = {"PATH": os.environ.get("PATH", os.defpath), "LISTENER": str(stand_in.fileno()), **half}
            done = subprocess.run(
                ["haproxy", "-c", "-f", config], stdin=subprocess.DEVNULL, capture_output=True, timeout=STARTS_WITHIN,
                env=environment, pass_fds=[stand_in.fileno()], **identity,  # type: ignore[call-overload]
            )  # fmt: skip
            if done.returncode:
                alerts = [line for line in done.stderr.decode(errors="replace").splitlines() if "ALERT" in line]
                why = one_line((alerts or ["no reason given"])[0])
                raise Refused(f"HAProxy would not take {config}: {why}", TRY_LATER)


def wait_for_another(path: str, former: int) -> None:
    end = time.monotonic() + STARTS_WITHIN
    while time.monotonic() < end:
        if worker(path) not in (0, former):
            return
        time.sleep(LOOK_EVERY)
    raise Refused("HAProxy goes on with the configuration that it had", TRY_LATER)


def replace_certificate(path: str, place: str, content: str) -> None:
    """In the worker that runs; no connection is touched. Then in the file from which the next one starts."""
    said = ask(path, f"set ssl cert {place} <<\n{content}\n")
    if "Transaction" in said:
        said = ask(path, f"commit ssl cert {place}")
    if "Success" not in said:
        ask(path, f"abort ssl cert {place}")
        raise Refused(f"HAProxy would not take the certificate: {one_line(said)}", TRY_LATER)
    hand_in(place, content)


def pem(certificate: str, key: str) -> str:
    """The certificates of one file and the key of the other, and nothing else of them."""
    try:
        vllm_certificate.look(certificate, key)
    except vllm_certificate.Unfit as unfit:
        raise Refused(f"the certificate {certificate} is unfit: {unfit}", TRY_LATER) from None
    chain = re.findall(BLOCK.format("CERTIFICATE"), read(certificate).decode("ascii", "replace"), re.DOTALL)
    secret = re.findall(BLOCK.format("[A-Z ]*PRIVATE KEY"), read(key).decode("ascii", "replace"), re.DOTALL)
    return "\n".join(line for line in "\n".join([*chain, *secret]).splitlines() if line.strip()) + "\n"


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(LONGEST)


def hand_in(path: str, content: str) -> None:
    """A file for the owner of its directory, who may do there what he likes: no link of his is followed."""
    directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        owner, name = os.fstat(directory), os.path.basename(path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{name}.new", dir_fd=directory)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(f"{name}.new", flags, 0o600, dir_fd=directory), "w") as file:
            file.write(content)
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
        os.rename(f"{name}.new", name, src_dir_fd=directory, dst_dir_fd=directory)
    finally:
        os.close(directory)


# Called


def arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True)
    running, reloading = verbs.add_parser("run"), verbs.add_parser("reload")
    running.add_argument("--host", required=True)
    running.add_argument("--port", type=int, required=True)
    running.add_argument("--fallback")
    running.add_argument("--fallback-model")
    running.add_argument("--keys")
    reloading.add_argument("--certificate")
    reloading.add_argument("--key")
    for each in (running, reloading):
        each.add_argument("config")
    return parser.parse_args(words)


def main(words: list[str]) -> int:
    options = arguments(words)
    try:
        return run(options) if options.verb == "run" else reload(options)
    except Refused as refused:
        say(str(refused), 3)
        notify(f"STATUS=refused: {refused}")
        return refused.status
    except FileNotFoundError as error:
        say(f"{error.filename or 'a file'} is missing", 3)
        return BAD_CONFIGURATION
    except (OSError, subprocess.SubprocessError) as error:
        say(f"cannot {options.verb}: {error}", 3)
        return TRY_LATER


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
