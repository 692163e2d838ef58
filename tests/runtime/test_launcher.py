"""The launcher and the watcher for real, around the stand-in for vLLM; the test plays systemd's notify socket."""

from __future__ import annotations

import http.client
import http.server
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import ClassVar

import pytest

from installer.base.assets import RUNTIME
from installer.runtime import vllm_gpus, vllm_launcher, vllm_seen
from installer.runtime.vllm_words import VLLM
from tests.kit import nvml
from tests.kit.launched import PATIENCE, PROBE, USER, Service, arguments, digest, wait_until
from tests.kit.nvml import h200
from tests.kit.samples import UNGUARDED


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path)
    yield service
    service.end()


# Becoming vLLM's supervisor


def test_ready_after_an_answer_and_the_supervisor_is_the_main_process(service: Service) -> None:
    process = service.start()
    assert "STATUS=serving" in service.hear("READY=1")
    stages = [line for line in service.heard if line.startswith("STATUS=")]
    assert stages[0] == "STATUS=starting"
    assert "STATUS=waiting for the first answer" in stages
    assert "/vllm_supervisor.py " in arguments(process.pid)
    shown = arguments(service.vllm())
    assert "/vllm_listen.py serve /models/tiny" in shown
    assert shown.rstrip().endswith("--allowed-media-domains none.invalid --middleware vllm_guard.Guard")
    assert "sha256" not in shown
    assert [service.status("/v1/models", key) for key in (None, "wrong", USER, PROBE)] == [401, 401, 200, 200]
    assert service.status("/health") == 200
    assert (service.run / "keys").stat().st_mode & 0o777 == 0o600
    service.hear("WATCHDOG=1")


def test_vllm_hears_nothing_that_is_not_its_own(service: Service) -> None:
    service.environment |= {"VLLM_API_KEY": "sk-left-over", "VLLM_LOGGING_LEVEL": "INFO"}
    service.start()
    service.hear("READY=1")
    names = dict(
        line.split("=", 1) for line in Path(f"/proc/{service.vllm()}/environ").read_text().split("\0") if "=" in line
    )
    assert not names.keys() & {"VLLM_API_KEY", "NOTIFY_SOCKET", "WATCHDOG_USEC", "CREDENTIALS_DIRECTORY"}
    assert names["VLLM_USE_RUST_FRONTEND"] == "0"
    assert names["VLLM_KEEP_ALIVE_ON_ENGINE_DEATH"] == "1"
    assert names["PYTHONPATH"].startswith(f"{RUNTIME}:")


def test_a_key_in_clear_works_and_is_nowhere_to_be_seen(service: Service) -> None:
    service.start(f"default={USER}", f"ops:admin={digest('sk-admin')}@2999-01-01T00:00:00Z")
    service.hear("READY=1")
    assert service.status("/v1/models", USER) == 200
    assert all(USER not in arguments(pid) and PROBE not in arguments(pid) for pid in service.ours())
    seen = service.log.read_text() + "".join(path.read_text() for path in service.run.iterdir())
    assert USER not in seen
    assert f"ops admin {digest('sk-admin')[7:]} 2999-01-01T00:00:00Z" in (service.run / "keys").read_text()


def test_reload_puts_new_keys_in_force_while_it_runs(service: Service) -> None:
    process = service.start()
    service.hear("READY=1")
    del service.environment["CREDENTIALS_DIRECTORY"]  # which ExecReload= does not have
    done = service.once("reload", f"default={digest('sk-new')}")
    assert (done.returncode, done.stderr) == (0, "")
    assert [service.status("/v1/models", key) for key in (USER, "sk-new", PROBE)] == [401, 200, 200]
    assert process.poll() is None


@pytest.mark.parametrize(
    "keys",
    [
        (),
        ("",),
        ("sha256:abc",),
        ("sha256:" + "g" * 64,),
        ("Default=" + digest("x"),),
        ("default:root=" + digest("x"),),
        ("default=sk-with space in it",),
        ("default=short",),
        (digest("x") + "@tomorrow",),
        (digest("x") + "@2026-13-01T00:00:00Z",),
        ("prom:metrics=" + digest("x"),),
        (digest("x"), "default=sk-secret-secret-secret but malformed"),
    ],
)
def test_bad_keys_close_the_door(service: Service, keys: tuple[str, ...]) -> None:
    for verb in ("launch", "reload"):
        refused = service.once(verb, *keys, serve=None)
        assert refused.returncode == 78, refused.stderr
        assert len(refused.stderr.splitlines()) == 1
        assert "secret" not in refused.stderr
        assert "--api-key" in refused.stderr
        assert "STATUS=refused" in service.hear("STATUS=")
    assert not (service.run / "keys").exists()


def test_a_service_that_does_not_run_is_not_reloaded(service: Service) -> None:
    refused = service.once("reload", digest(USER))
    assert refused.returncode == 78
    assert "does not run" in refused.stderr


def test_bad_keys_at_a_reload_leave_the_old_ones(service: Service) -> None:
    before = service.running_keys()
    assert service.once("reload", "sha256:abc").returncode == 78
    assert (service.run / "keys").read_text() == before
    assert [path.name for path in service.run.iterdir()] == ["keys"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"RUNTIME_DIRECTORY": ""}, "RuntimeDirectory="),
        ({"CREDENTIALS_DIRECTORY": "/nowhere"}, "LoadCredential="),
        ({"VLLM_USE_RUST_FRONTEND": "1"}, "Rust front end"),
        ({"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}, "no request loads one"),
    ],
)
def test_what_the_unit_must_give(service: Service, change: Mapping[str, str], words: str) -> None:
    service.environment |= change
    refused = service.once("launch", digest(USER), serve=None)
    assert refused.returncode == 78
    assert words in refused.stderr


@pytest.mark.parametrize(
    "serve",
    [
        ("bench",),
        ("serve", "m", "--uds", "/run/x"),
        ("serve", "m", "--grpc"),
        ("serve", "m", "--api_key=sk-x"),
        ("serve", "m", "--disable-log-stats"),
        ("serve", "m", "--ssl-certfile", "/c.pem"),
        ("serve", "m", "--ssl_key=/k.pem"),
        ("serve", "m", "--port", "http"),
        ("serve", "m", "--port=70000"),
        ("serve", "m", "--por", "http"),
        ("serve", "m", "--api-ke", "sk-x"),
        ("serve", "m", "--enable-ss"),
        *(("serve", "m", *spelling.split()) for spelling, _ in UNGUARDED),
    ],
)
def test_commands_that_cannot_be_guarded_or_watched(service: Service, serve: tuple[str, ...]) -> None:
    refused = service.once("launch", digest(USER), serve=serve)
    assert refused.returncode == 78
    assert "sk-x" not in refused.stderr


def test_a_full_runtime_directory_keeps_the_old_keys(service: Service) -> None:
    before = service.running_keys()
    limited = ["prlimit", "--fsize=10", *service.command("reload", digest("sk-other"), serve=())]
    failed = subprocess.run(limited, env=service.environment, capture_output=True, text=True)
    assert failed.returncode == 1
    assert "cannot reload" in failed.stderr
    assert (service.run / "keys").read_text() == before
    assert [path.name for path in service.run.iterdir()] == ["keys"]


# Custody


def listens(address: str, port: int) -> bool:
    """Whether somebody who does all he can gets to listen there beside the service."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as taker:
        taker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):
            taker.bind((address, port))
            taker.listen()
            return True
    return False


@pytest.mark.parametrize("stage", ["load", "capture"])
def test_nobody_else_can_listen_while_it_loads_and_callers_see_nobody(service: Service, stage: str) -> None:
    service.faults(f"stall={stage}")
    service.start()
    service.hear({"load": "STATUS=loading weights", "capture": "STATUS=capturing graphs"}[stage])
    assert [listens(address, service.port) for address in ("127.0.0.1", "0.0.0.0", "::")] == [False] * 3
    for _ in range(100):  # more than the queue takes: they are turned away, not left to wait
        with pytest.raises(OSError, match=r"reset|closed|Broken"):
            service.status("/health")


def test_it_listens_on_the_one_socket_until_it_stops(service: Service) -> None:
    process = service.start()
    service.hear("READY=1")
    assert not listens("127.0.0.1", service.port)
    holders = {pid for pid in service.ours() for link in descriptors(pid) if link == listening_socket(service.port)}
    assert holders == {service.vllm()}, "the others would keep the port open"
    process.terminate()
    assert process.wait(PATIENCE) == 0
    assert listens("127.0.0.1", service.port)


def descriptors(pid: int) -> list[str]:
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # closed since
            found.append(os.readlink(link))
    return found


def listening_socket(port: int) -> str:
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    (inode,) = (row[9] for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}"))
    return f"socket:[{inode}]"


class Stranger(http.server.BaseHTTPRequestHandler):
    """Answers as the guard does, and keeps what it is told."""

    told: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.told.append(self.headers.get("Authorization", ""))
        self.send_response(401)
        self.end_headers()


@contextmanager
def serving(port: int) -> Iterator[http.server.HTTPServer]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Stranger) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_the_watcher_sends_its_key_to_the_launcher_s_socket_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    Stranger.told.clear()
    with serving(0) as server:
        port, listener = server.server_port, os.dup(server.fileno())
        vllm = vllm_seen.Vllm(VLLM, os.getpid(), "127.0.0.1", listener, 1, PROBE)
        assert vllm.ask("GET", "/v1/models", 10)[0] == 401
    vllm._listener.close()
    with serving(port):
        assert vllm.ask("GET", "/v1/models", 10) == (0, b"")
        assert vllm.ask("GET", "/is-this-guarded", 10, key=False)[0] == 401
    assert Stranger.told == [f"Bearer {PROBE}", ""]


def test_former_replicas_make_way_and_an_admin_s_own_units_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {
        "vllm@1.service": "# Rendered by vllm-install 0.1.0; ...",
        "vllm@12.service": "# Rendered by vllm-install 0.1.0; ...",
        "vllm@3.service": "[Unit]",
        "vllm@.service": "# Rendered by vllm-install 0.1.0; ...",
        "vllm@x.service": "# Rendered by vllm-install 0.1.0; ...",
        "other@1.service": "# Rendered by vllm-install 0.1.0; ...",
    }
    for name, text in made.items():
        (tmp_path / name).write_text(text)
    told: list[tuple[tuple[str, ...], float | None]] = []
    monkeypatch.setattr(vllm_launcher, "UNITS", str(tmp_path))
    monkeypatch.setattr(vllm_launcher, "systemctl", lambda *words, within: told.append((words, within)))
    for service in ("vllm", "vllm@1", "", "v*"):
        vllm_launcher.end_replicas(service)
    assert told == [(("stop", "vllm@1.service", "vllm@12.service"), None)]


@pytest.mark.parametrize("verb", ["launch", "check"])
def test_the_holder_of_the_port_is_named(service: Service, verb: str) -> None:
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", service.port))
        holder.listen()
        refused = service.once(verb, *((digest(USER),) if verb == "launch" else ()), serve=None)
    assert refused.returncode == 75
    assert f"port {service.port} is held by pid {os.getpid()} (" in refused.stderr


def test_a_connection_that_goes_out_from_the_port_is_named(service: Service) -> None:
    """What a busy host does to a port from the kernel's own range while the service is down."""
    with socket.create_server(("127.0.0.1", 0)) as far, socket.create_connection(far.getsockname()) as near:
        service.port = near.getsockname()[1]
        refused = service.once("launch", digest(USER), serve=None)
    assert refused.returncode == 75
    assert f"port {service.port} is held by pid {os.getpid()} (" in refused.stderr


# Holds a port with hostile words in its arguments.
HOLDER = """
import socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print(flush=True)
sys.stdin.read()
"""
FORGED = "two\n<2>vllm-launcher: forged\nSTATUS=forged\nMAINPID=1\x1b[2J\u202e"


@pytest.mark.parametrize("name", ["db", FORGED])
def test_the_holder_of_the_port_has_no_say(service: Service, name: str) -> None:
    (service.home / name).write_text(HOLDER)
    command = [sys.executable, str(service.home / name), str(service.port), "--password", "hunter2"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        refused = service.once("launch", digest(USER), serve=None)
        heard = service.hear("STATUS=refused")
        holder.kill()
    assert f"is held by pid {holder.pid} (" in refused.stderr
    for said in (refused.stderr, heard):
        assert len(said.splitlines()) == 1
        assert "hunter2" not in said
        assert "\x1b" not in said
        assert "\u202e" not in said


def test_the_holders_of_gpu_memory_are_named(service: Service) -> None:
    fake = service.home / "bin/nvidia-smi"
    fake.write_text(f"#!/bin/sh\necho '{os.getpid()}, 20480 MiB, GPU-1'\n")
    fake.chmod(0o755)
    checked = service.once("check", serve=None)
    assert checked.returncode == 0
    assert f"GPU memory is held by pid {os.getpid()} (" in checked.stderr
    assert "20480 MiB" in checked.stderr


@pytest.mark.parametrize(
    ("visible", "named"),
    [("GPU-1", [7]), ("GPU-2,GPU-1", [7, 8]), ("GPU-3", []), ("", [7, 8]), ("1", [7, 8]), ("MIG-1", [7, 8])],
)
def test_only_holders_of_the_service_s_own_gpus_are_named(service: Service, visible: str, named: list[int]) -> None:
    fake = service.home / "bin/nvidia-smi"
    fake.write_text("#!/bin/sh\necho '7, 20480 MiB, GPU-1'\necho '8, [N/A], GPU-2'\n")
    fake.chmod(0o755)
    service.environment["CUDA_VISIBLE_DEVICES"] = visible
    checked = service.once("check", serve=None)
    assert [pid for pid in (7, 8) if f"held by pid {pid} (" in checked.stderr] == named


@pytest.mark.parametrize(
    ("gpu", "said"),
    [(h200(0, handle=15), "is not there any more (GPU is lost)"), (h200(0, recovery=1), "is of no use before a reset")],
)
def test_gpus_with_which_no_start_can_succeed_are_refused_once(
    service: Service, gpu: dict[str, object], said: str
) -> None:
    has_gpus(service, gpu)
    refused = service.once("launch", digest(USER), serve=None)
    assert refused.returncode == 78, refused.stderr
    for heard in (refused.stderr, service.hear("STATUS=refused: the GPU GPU-00000000")):
        assert said in heard


def test_gpus_that_a_reset_would_do_good_are_served_with(service: Service) -> None:
    has_gpus(service, h200(0, remapped_pending=1, recovery=4))
    service.start()
    service.hear("READY=1")


def has_gpus(service: Service, own: dict[str, object]) -> None:
    service.environment |= {
        "LD_LIBRARY_PATH": str(nvml.install(service.home / "driver", [own, h200(1)])),
        "CUDA_VISIBLE_DEVICES": str(own["uuid"]),
    }


def test_a_driver_that_hangs_is_not_waited_for(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml.install(service.home / "driver", [h200(0), h200(1, hang=1)])
    monkeypatch.setenv("LD_LIBRARY_PATH", str(service.home / "driver/usr/lib"))
    said = vllm_gpus.ask(10.0)
    assert [each.get("uuid") for each in said if "index" in each] == [h200(0)["uuid"]]
    assert vllm_gpus.unfit([str(h200(1)["uuid"])], said) == ""


# Watching


def test_a_hung_engine_is_told_to_systemd(service: Service) -> None:
    service.start()
    service.hear("READY=1")
    engine = service.named("VLLM::EngineCore")
    os.kill(engine, signal.SIGSTOP)
    assert service.status("/health") == 200
    service.hear("WATCHDOG=trigger")
    assert "makes no progress" in service.log.read_text()
    assert "stacks of VLLM::EngineCore" in service.log.read_text()


def test_a_service_that_refuses_its_watcher_is_started_anew_and_says_why(service: Service) -> None:
    process = service.start()
    service.hear("READY=1")
    (service.run / "keys").write_text("default inference damaged\n")
    service.hear("STATUS=the watcher's own key is refused: the file with the keys is damaged")
    process.wait(PATIENCE)
    assert "makes no progress" not in service.log.read_text()


def test_an_engine_busy_with_a_long_answer_is_not_hung(service: Service) -> None:
    service.faults("token-seconds=0.2")
    service.start()
    service.hear("READY=1")
    connection = http.client.HTTPConnection("127.0.0.1", service.port)
    headers = {"Authorization": f"Bearer {USER}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/completions", '{"prompt": "x", "max_tokens": 40}', headers)
    assert connection.getresponse().status == 200
    for _ in range(2):
        service.hear("WATCHDOG=1")
    assert not any("trigger" in line for line in service.heard)


def test_a_server_short_of_descriptors_is_not_hung(service: Service) -> None:
    process = service.start()
    service.hear("READY=1")
    resource.prlimit(service.vllm(), resource.RLIMIT_NOFILE, (64, 64))
    with ExitStack() as held:
        for _ in range(100):
            held.enter_context(socket.create_connection(("127.0.0.1", service.port)))
        service.hear("STATUS=too many connections")
        for _ in range(2):  # each of them is later than the watchdog's patience
            service.hear("WATCHDOG=1")
    service.hear("STATUS=serving")
    assert process.poll() is None
    assert not any("trigger" in line for line in service.heard)


def test_a_server_short_of_descriptors_is_hung_if_it_does_nothing(service: Service) -> None:
    service.start()
    service.hear("READY=1")
    vllm = service.vllm()
    with ExitStack() as held:
        for _ in range(60):
            held.enter_context(socket.create_connection(("127.0.0.1", service.port)))
        wait_until(lambda: len(descriptors(vllm)) > 60)
        os.kill(vllm, signal.SIGSTOP)
        resource.prlimit(vllm, resource.RLIMIT_NOFILE, (64, 64))
        service.hear("WATCHDOG=trigger")


def test_an_engine_that_dies_ends_the_service_by_a_signal(service: Service) -> None:
    process = service.start()
    service.hear("READY=1")
    engine = service.named("VLLM::EngineCore")
    os.kill(engine, signal.SIGKILL)
    assert process.wait(PATIENCE) == -signal.SIGKILL
    assert "the engine died" in service.log.read_text()


def test_an_engine_that_dies_of_its_first_request_is_never_ready(service: Service) -> None:
    service.faults("die-on-completion")
    process = service.start()
    assert process.wait(PATIENCE) == -signal.SIGKILL
    service.hear("STATUS=the engine died of its first request")
    assert not any("READY=1" in line for line in service.heard)


def test_a_start_without_progress_is_ended(service: Service) -> None:
    service.environment["START_PATIENCE_SEC"] = "1"
    service.faults("stall=load")
    process = service.start()
    service.hear("STATUS=the start made no progress for 1 s")
    service.hear("WATCHDOG=trigger")
    assert process.wait(PATIENCE) == -signal.SIGABRT  # nobody obeys the trigger here, so the watcher does it


def test_a_server_without_the_guard_is_ended(service: Service) -> None:
    package = service.home / "site/vllm/entrypoints/cli"
    package.mkdir(parents=True)
    for folder in (package, *list(package.parents)[:2]):
        (folder / "__init__.py").touch()
    (package / "main.py").write_text(
        "import http.server\n"
        "class Bare(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self): self.send_error(404)\n"
        f"http.server.HTTPServer(('127.0.0.1', {service.port}), Bare).serve_forever()\n"
    )
    process = service.start()
    assert process.wait(PATIENCE) == -signal.SIGKILL
    assert "the guard is not in place" in service.log.read_text()
    assert not any("READY=1" in line for line in service.heard)


def test_a_stop_during_the_start_is_obeyed_at_once(service: Service) -> None:
    service.faults("stall=compile")
    process = service.start()
    service.hear("STATUS=compiling")
    service.substate("stop-sigterm")
    assert process.wait(PATIENCE) == -signal.SIGHUP  # which systemd takes for a clean end
    assert "stop asked for while compiling" in service.log.read_text()


def test_a_stop_is_obeyed_where_signals_were_ignored_before(service: Service) -> None:
    """As below nohup, and below a shell that started something in the background."""
    service.faults("stall=compile")
    process = service.start(within=("sh", "-c", 'trap "" HUP INT TERM; exec "$@"', "sh"))
    service.hear("STATUS=compiling")
    service.substate("stop-sigterm")
    assert process.wait(PATIENCE) == -signal.SIGHUP


def test_a_stop_is_not_taken_for_a_hang(service: Service) -> None:
    process = service.start()
    service.hear("READY=1")
    service.substate("stop-sigterm")
    os.kill(service.named("VLLM::EngineCore"), signal.SIGKILL)
    wait_until(lambda: service.status("/health") == 503)
    process.terminate()
    assert process.wait(PATIENCE) == 0
    assert not any("trigger" in line for line in service.heard)


def test_the_reason_of_a_failed_start_is_the_status(service: Service) -> None:
    service.faults("refuse-context=1024")
    address = ("--host", "127.0.0.1", "--port", str(service.port))
    process = service.start(serve=("serve", "/models/tiny", *address, "--max-model-len", "4096"))
    assert "estimated maximum model length is 1024" in service.hear("STATUS=failed")
    assert process.wait(PATIENCE) == 1


def test_the_watcher_leaves_with_vllm(service: Service) -> None:
    process = service.start()
    service.hear("READY=1")
    process.terminate()
    assert process.wait(PATIENCE) == 0
    wait_until(lambda: not service.ours())
