"""Weights from a hub that is real HTTP on localhost, from directories, and all that can go wrong on the way."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from installer import builtin, download, hub, models, partial
from installer.builtin import MakeBuiltin
from installer.changes import Change
from installer.checkpoint import check_access, check_directory
from installer.errors import Exit, Interrupted, Refused
from installer.host import Host
from installer.hub import ModelError, ModelFile
from installer.layout import Layout
from installer.models import Download, Model, changes, is_present, resolve
from installer.report import Advance, Report
from installer.selection import select
from installer.settings import Settings
from tests.hub import Hub

REPO = "Org/Tiny"
LAYOUT = Layout("qwen3vl")
TOKEN = "hf_" + "secret" * 5


@pytest.fixture(autouse=True)
def _plain_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download, "RETRY_DELAYS", (0.0, 0.0, 0.0))
    monkeypatch.setattr(hub, "BUSY_DELAYS", (0.0, 0.0))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    tmp_path.chmod(0o755)
    return Host(root=tmp_path)


@pytest.fixture
def server() -> Iterator[Hub]:
    with Hub() as running:
        yield running


def checkpoint(seed: int = 1, size: int = 300_000) -> dict[str, bytes]:
    """The built-in model's files, its weights in two shards, and what a hub repository has besides."""
    made = dict(builtin.files())
    made.pop("model.safetensors")
    for shard in (1, 2):
        made[f"model-0000{shard}-of-00002.safetensors"] = weights(seed * 10 + shard, size)
    made["model.safetensors.index.json"] = (
        b'{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    )
    return made | {"README.md": b"# read", ".gitattributes": b"x", "pytorch_model.bin": b"pickle", "a/b/c.json": b"{}"}


def weights(seed: int, size: int) -> bytes:
    header = (
        b'{"a": {"dtype": "U8", "shape": [%d], "data_offsets": [0, %d]},'
        b' "b": {"dtype": "U8", "shape": [0], "data_offsets": [%d, %d]}}' % (size, size, size, size)
    )
    return len(header).to_bytes(8, "little") + header + random.Random(seed).randbytes(size)


SHARD = "model-00001-of-00002.safetensors"
WANTED = {
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "a/b/c.json",
    "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json",
}  # fmt: skip


def settings(server: Hub | None = None, **what: object) -> Settings:
    chosen: dict[str, object] = {"model": REPO, "hf_endpoint": server.url if server else None} | what
    return replace(Settings(), **chosen)  # type: ignore[arg-type]


class Counting(Report):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.totals: list[int] = []
        self.counts: list[int] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    @contextmanager
    def bytes(self, label: str, total: int, files: int = 0) -> Iterator[Advance]:
        self.totals.append(total)
        yield lambda count, files=0: self.counts.append(count)


def pull(server: Hub, host: Host, report: Report | None = None, **what: object) -> Model:
    model = resolve(settings(server, **what), host, LAYOUT)
    for change in due(model, host):
        change.apply(host, report or Report())
    return model


def due(model: Model, host: Host, **what: object) -> list[Change]:
    return list(changes(model, host, replace(settings(), hf_endpoint=model.endpoint, **what)))  # type: ignore[arg-type]


def served(host: Host, model: Model) -> dict[str, bytes]:
    path = host.at(model.path)
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def blobs(host: Host) -> Path:
    return host.at(LAYOUT.hub / "models--Org--Tiny" / "blobs")


# The plain way


def test_a_download_is_planned_to_the_byte_and_then_exactly_that(server: Hub, host: Host) -> None:
    files = checkpoint()
    commit = server.add(REPO, files)
    model = resolve(settings(server), host, LAYOUT)
    expected = sum(len(files[name]) for name in WANTED)
    path = LAYOUT.hub / "models--Org--Tiny/snapshots" / commit
    assert (model.path, model.commit, model.id, model.source) == (path, commit, REPO, "hub")
    assert not host.exists(LAYOUT.hub), "a plan writes nothing"

    (change,) = due(model, host)
    assert change.to_json() == {
        "kind": "download", "model": REPO, "commit": commit, "path": str(path), "bytes": expected, "files": len(WANTED),
    }  # fmt: skip
    report = Counting()
    change.apply(host, report)
    assert report.totals == [expected]
    assert sum(report.counts) == expected
    assert server.sent == expected
    assert served(host, model) == {name: files[name] for name in WANTED}


def test_the_cache_is_the_hub_clients_own(server: Hub, host: Host) -> None:
    from huggingface_hub import scan_cache_dir, snapshot_download

    server.add(REPO, checkpoint())
    model = pull(server, host)
    link = host.at(model.path) / SHARD
    assert link.readlink().parent == Path("../../blobs")
    sent = server.sent
    found = snapshot_download(
        REPO, cache_dir=host.at(LAYOUT.hub), endpoint=server.url, token=False, allow_patterns=sorted(WANTED)
    )
    assert (Path(found), server.sent) == (host.at(model.path), sent)
    scanned = scan_cache_dir(host.at(LAYOUT.hub))
    assert [repo.repo_id for repo in scanned.repos] == [REPO]
    assert not scanned.warnings


def test_any_user_may_read_it_whatever_the_umask(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())
    before = os.umask(0o077)
    try:
        model = pull(server, host)
    finally:
        os.umask(before)
    assert check_access(model.path, host) == []


def test_a_complete_known_commit_asks_nobody(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())
    model = pull(server, host)
    server.add(REPO, checkpoint(seed=2))
    asked = len(server.requests)
    again = resolve(settings(server), host, LAYOUT, model.commit)
    assert (again.commit, again.bytes_missing, due(again, host)) == (model.commit, 0, [])
    assert len(server.requests) == asked


def test_a_known_commit_stays_although_the_branch_moved(server: Hub, host: Host) -> None:
    first = server.add(REPO, checkpoint())
    model = resolve(settings(server), host, LAYOUT)
    server.add(REPO, checkpoint(seed=2))
    again = resolve(settings(server), host, LAYOUT, first)
    assert again == model
    (change,) = due(again, host)
    change.apply(host, Report())
    assert served(host, again)[SHARD] == checkpoint()[SHARD]


def test_a_new_commit_fetches_only_what_differs(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())
    pull(server, host)
    second = server.add(REPO, checkpoint() | {"config.json": builtin.files()["config.json"] + b" "})
    sent = server.sent
    model = pull(server, host)
    assert model.commit == second
    assert server.sent - sent == len(builtin.files()["config.json"]) + 1
    assert is_present(model, host)


def test_a_branch_a_tag_and_a_commit_can_be_asked_for(server: Hub, host: Host) -> None:
    main = server.add(REPO, checkpoint())
    pr = server.add(REPO, checkpoint(seed=3), ref="refs/pr/1")
    assert pull(server, host, revision="refs/pr/1").commit == pr
    assert resolve(settings(server, revision=main), host, LAYOUT).commit == main


def test_equal_files_are_fetched_once(server: Hub, host: Host) -> None:
    same = weights(5, 200_000)
    files = checkpoint() | dict.fromkeys((SHARD, SHARD.replace("00001-", "00002-")), same)
    server.add(REPO, files)
    report = Counting()
    model = pull(server, host, report)
    assert sum(report.counts) == report.totals[0] == model.bytes_missing
    assert server.sent == sum(len(files[name]) for name in WANTED) - len(same)
    assert is_present(model, host)


def test_offline_uses_what_is_there_and_asks_nobody(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())
    model = pull(server, host)
    asked = len(server.requests)
    assert resolve(settings(server, offline=True), host, LAYOUT).path == model.path
    (host.at(model.path) / SHARD).resolve().unlink()
    with pytest.raises(ModelError, match=r"offline.*missing"):
        resolve(settings(server, offline=True), host, LAYOUT)
    with pytest.raises(ModelError, match="not in the cache") as caught:
        resolve(settings(server, offline=True, model="Org/Other"), host, LAYOUT)
    assert caught.value.exit_code == Exit.MODEL
    assert len(server.requests) == asked


def test_offline_accepts_a_cache_that_another_client_filled(server: Hub, host: Host) -> None:
    from huggingface_hub import snapshot_download

    files = {name: content for name, content in checkpoint().items() if name in WANTED}
    commit = server.add(REPO, files)
    snapshot_download(REPO, cache_dir=host.at(LAYOUT.hub), endpoint=server.url, token=False)
    asked = len(server.requests)
    model = resolve(settings(server, offline=True), host, LAYOUT)
    assert model.commit == commit
    (check,) = due(model, host, offline=True)
    assert check.describe().startswith("check Org/Tiny")
    check.apply(host, Report())
    assert (due(model, host, offline=True), len(server.requests)) == ([], asked)


def test_a_model_read_back_from_state_is_still_known_to_be_there(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())
    remembered = replace(pull(server, host), files=())
    assert due(remembered, host) == []
    (host.at(remembered.path) / SHARD).resolve().unlink()
    (change,) = due(remembered, host)
    change.apply(host, Report())
    assert is_present(remembered, host)


# Which files


def listed(*names: str) -> list[ModelFile]:
    return [ModelFile(name, 1, "0" * 40) for name in names]


@pytest.mark.parametrize(
    ("names", "dropped"),
    [
        (["model.safetensors", "pytorch_model.bin", "tf_model.h5", "x.onnx", "model.gguf", "onnx/a.json"], 5),
        (["model.safetensors", "consolidated.safetensors", "consolidated.safetensors.index.json"], 2),
        (["model.safetensors", "original/params.json", "original/consolidated.00.pth", "img/logo.png", "LICENSE"], 4),
        (["model.safetensors", "optimizer.pt", "training_args.bin", "checkpoint-10/model.safetensors"], 3),
        (["model.safetensors", "1_Pooling/config.json", "2_Dense/model.safetensors", "chat_template.jinja"], 0),
        (["a-00001-of-00002.safetensors", "a-00002-of-00002.safetensors", "a.safetensors.index.json", ".x/y.json"], 1),
    ],
)
def test_only_files_that_the_engine_loads(names: list[str], dropped: int) -> None:
    base = ["config.json", "tokenizer.json"]
    chosen = {file.name for file in select(REPO, listed(*base, *names))}
    assert chosen == {*base, *names[: len(names) - dropped]} if dropped else {*base, *names}


def test_the_consolidated_form_where_it_is_the_only_whole_one() -> None:
    names = ["params.json", "consolidated.safetensors", "tekken.json"]
    assert {file.name for file in select(REPO, listed(*names))} == set(names)
    # The standard form without a tokenizer of its own is not whole.
    both = [*names, "config.json", "model-00001-of-00001.safetensors", "model.safetensors.index.json"]
    assert {file.name for file in select(REPO, listed(*both))} == {*names, "config.json"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["config.json", "pytorch_model.bin"], "pickles"),
        (["config.json", "README.md"], "no weights"),
        (["adapter_config.json", "adapter_model.safetensors"], "config.json"),
        (["config.json", "tokenizer.json", "model.safetensors", "x.json", "x.json/y.json"], "as a file and as a dir"),
    ],
)
def test_what_cannot_be_served_is_refused_before_the_download(names: list[str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        select(REPO, listed(*names))


def test_gguf_is_refused_with_what_would_work_instead() -> None:
    with pytest.raises(Refused, match="vllm-gguf-plugin") as refused:
        select(REPO, listed("config.json", "model-Q4_K_M.gguf"))
    assert "AWQ" in refused.value.hint


@pytest.mark.parametrize(
    "name", ["../../etc/x", "/etc/x", "a/../b", "a//b", "a\0b", "a\\b", "./x", "", "a/", "x\n", "b" * 256]
)
def test_a_hostile_file_name_is_refused(server: Hub, host: Host, name: str) -> None:
    server.add(REPO, checkpoint() | {name: b"x"})
    with pytest.raises(ModelError, match="dangerous name"):
        resolve(settings(server), host, LAYOUT)


# Broken lines


def resolved_and_pulled(server: Hub, host: Host) -> Model:
    model = pull(server, host)
    files = {name: next(iter(server.repos[REPO].commits.values()))[name].content for name in WANTED}
    assert served(host, model) == files
    return model


def test_a_reset_is_continued_at_the_byte_it_came(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())
    server.fail(f"/lfs/.*{SHARD}", cut=100_000)
    server.fail(f"/lfs/.*{SHARD}", cut=50_000)
    resolved_and_pulled(server, host)
    ranges = [r.headers["range"] for r in server.requests if r.server == "cdn" and "range" in r.headers]
    assert len(ranges) == 2
    assert server.sent < sum(len(checkpoint()[name]) for name in WANTED) + 150_000, "not from the start again"


def test_a_server_without_ranges_still_gets_it_through(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())
    server.fail(f"/lfs/.*{SHARD}", cut=100_000, no_range=True)
    server.fail(f"/lfs/.*{SHARD}", no_range=True, times=None)
    report = Counting()
    model = pull(server, host, report)
    assert served(host, model)[SHARD] == checkpoint()[SHARD]
    assert sum(report.counts) == report.totals[0], "the display takes back what was thrown away"
    assert sum(f"/{SHARD}" in r.path for r in server.requests if r.server == "cdn") == 2


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_busy_hub_is_asked_again(server: Hub, host: Host, status: int) -> None:
    server.add(REPO, checkpoint())
    for path in ("/api/models", "/resolve/.*config.json", "/lfs/"):
        server.fail(path, status=status, headers={"Retry-After": "0"}, times=2)
    resolved_and_pulled(server, host)


def test_a_hub_that_names_a_wait_gets_it(server: Hub, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add(REPO, checkpoint())
    server.fail("/api/models", status=429, headers={"Retry-After": "7"})
    waits: list[float] = []
    monkeypatch.setattr(hub.time, "sleep", waits.append)
    resolve(settings(server), host, LAYOUT)
    assert waits == [7]


def test_retry_after_is_understood_in_both_forms() -> None:
    assert hub.retry_after("7") == 7
    assert hub.retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert hub.retry_after("Wed, 21 Oct 2099 07:28:00 GMT") == hub.LONGEST_WAIT
    assert hub.retry_after("soon") == hub.retry_after(None) == 0


def test_a_slow_line_is_no_fault(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint(size=20_000))
    server.fail("/lfs/", drip=0.001, times=None)
    resolved_and_pulled(server, host)


@pytest.mark.parametrize("fault", [{"corrupt": True}, {"end": 1000}, {"body": b"x", "status": 200}])
def test_wrong_bytes_are_fetched_anew_once(server: Hub, host: Host, fault: dict[str, object]) -> None:
    server.add(REPO, checkpoint())
    server.fail(f"/lfs/.*{SHARD}", **fault)
    server.fail("/resolve/.*/config.json", corrupt=True)
    resolved_and_pulled(server, host)


def test_wrong_bytes_twice_end_the_download(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())
    server.fail(f"/lfs/.*{SHARD}", corrupt=True, times=None)
    with pytest.raises(ModelError, match=f"{SHARD} arrived with wrong bytes twice") as caught:
        pull(server, host)
    assert caught.value.exit_code == Exit.MODEL
    digest = server.repos[REPO].commits[next(iter(server.repos[REPO].commits))][SHARD].sha256
    assert not (blobs(host) / digest).exists()
    assert partial.arrived(blobs(host) / digest, len(checkpoint()[SHARD])) == 0, "wrong bytes are not continued"
    server.faults.clear()
    resolved_and_pulled(server, host)


def test_a_file_that_stays_too_short_ends_the_download(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())
    server.fail(f"/lfs/.*{SHARD}", end=1000, times=None)
    with pytest.raises(ModelError, match="wrong bytes twice: 1000 bytes"):
        pull(server, host)


def test_a_partial_with_wrong_bytes_is_noticed(server: Hub, host: Host) -> None:
    commit = server.add(REPO, checkpoint())
    digest = server.repos[REPO].commits[commit][SHARD].sha256
    host.make_dir(LAYOUT.hub / "models--Org--Tiny/blobs")
    for begun in (b"\0" * 5000, b"\0" * 9_000_000):
        (blobs(host) / f"{digest}.incomplete").write_bytes(begun)
        report = Counting()
        model = pull(server, host, report)
        assert sum(report.counts) == report.totals[0]
        assert served(host, model)[SHARD] == checkpoint()[SHARD]
        (host.at(model.path) / SHARD).resolve().unlink()


def test_what_another_client_or_commit_left_half_done_is_swept(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())
    host.make_dir(LAYOUT.hub / "models--Org--Tiny/blobs")
    (blobs(host) / "0123.a1b2.incomplete").write_bytes(b"left over")
    resolved_and_pulled(server, host)
    assert [path.name for path in blobs(host).iterdir() if len(path.name) not in (40, 64)] == []


# Interruptions

CHILD = """
import sys
from pathlib import Path
from installer.host import Host
from installer.layout import Layout
from installer.models import resolve, changes
from installer.report import Report
from installer.settings import Settings
from contextlib import contextmanager
class Loud(Report):
    def note(self, text): print(text, flush=True)
    @contextmanager
    def bytes(self, label, total, files=0):
        yield lambda count, files=0: print(count, flush=True)
host = Host(root=Path(sys.argv[1]))
settings = Settings(model="Org/Tiny", hf_endpoint=sys.argv[2])
model = resolve(settings, host, Layout("qwen3vl"))
print("resolved", flush=True)
for change in changes(model, host, settings):
    change.apply(host, Loud())
"""


@contextmanager
def child(server: Hub, host: Host) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", CHILD, str(host.root), server.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def arrived(process: subprocess.Popen[str], count: int) -> int:
    """Read the child's progress until so many bytes have come."""
    assert process.stdout is not None
    total = 0
    while total < count:
        line = process.stdout.readline()
        assert line, process.stderr.read() if process.stderr else ""
        total += int(line) if line.strip().isdigit() else 0
    return total


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_another_process_continues_where_one_was_killed(server: Hub, host: Host, how: signal.Signals) -> None:
    size, held = 2_000_000, 1_500_000
    server.add(REPO, checkpoint(size=size))
    release = threading.Event()
    server.fail("/lfs/.*0000[12]-of", cut=held, hold=release, times=2)
    with child(server, host) as process:
        arrived(process, 2 * held)
        process.send_signal(how)
        release.set()
        assert process.wait() != 0
    model = resolve(settings(server), host, LAYOUT)
    assert model.bytes_missing < model.bytes_total - 2 * held + 1
    sent = server.sent
    for change in due(model, host):
        change.apply(host, Report())
    assert server.sent - sent == model.bytes_missing, "not one byte twice"
    assert served(host, model)[SHARD] == checkpoint(size=size)[SHARD]


def test_the_second_of_two_waits_and_says_so(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())
    fault = server.fail(f"/lfs/.*{SHARD}", cut=100_000, hold=threading.Event())
    first = threading.Thread(target=pull, args=(server, host))
    first.start()
    assert fault.reached.wait(30)
    with child(server, host) as second:
        assert second.stdout is not None
        assert second.stdout.readline() == "resolved\n"
        assert "another process downloads Org/Tiny" in second.stdout.readline()
        assert fault.hold is not None
        fault.hold.set()
        first.join()
        assert second.wait() == 0
        assert second.stdout.read() == "", "there was nothing left to fetch"
    resolved_and_pulled(server, host)


def test_a_fault_in_one_file_stops_the_others_at_once(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint(size=3_000_000))
    server.fail("/resolve/.*/config.json", status=403, times=None)
    server.fail("/lfs/.*0000[12]-of", drip=0.001, times=2)
    with pytest.raises(ModelError):
        pull(server, host)
    assert server.sent < 3_000_000


def test_an_interruption_keeps_what_has_come(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())

    class Cut(Report):
        @contextmanager
        def bytes(self, label: str, total: int, files: int = 0) -> Iterator[Advance]:
            def advance(count: int, files: int = 0) -> None:
                if count > 50_000:
                    raise Interrupted("SIGTERM")

            yield advance

    model = resolve(settings(server), host, LAYOUT)
    with pytest.raises(Interrupted):
        Download(model, 8, (model.origin,)).apply(host, Cut())
    assert 0 < resolve(settings(server), host, LAYOUT).bytes_missing < model.bytes_total
    resolved_and_pulled(server, host)


# Refusals


def refusal(server: Hub, host: Host, **what: object) -> ModelError:
    with pytest.raises(ModelError) as caught:
        pull(server, host, **what)
    assert caught.value.exit_code == Exit.MODEL
    assert caught.value.hint
    assert TOKEN not in caught.value.message + caught.value.hint
    return caught.value


def test_an_unknown_model(server: Hub, host: Host) -> None:
    error = refusal(server, host)
    assert "has no model Org/Tiny" in error.message
    server.fail("/api/models", status=401, body=b'{"error": "Invalid username or password."}')
    assert "has no model Org/Tiny" in refusal(server, host).message


def test_an_unknown_revision(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())
    assert "no revision 'v9'" in refusal(server, host, revision="v9").message


def test_a_gated_model_is_refused_before_any_byte(server: Hub, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add(REPO, checkpoint())
    server.repos[REPO].gated, server.repos[REPO].token = True, TOKEN
    with pytest.raises(ModelError, match="accepted its terms") as caught:
        resolve(settings(server), host, LAYOUT)
    assert f"{server.url}/{REPO}" in caught.value.hint
    assert "HF_TOKEN" in caught.value.hint
    monkeypatch.setenv("HF_TOKEN", "hf_wrong" + TOKEN)
    assert "token in use" in refusal(server, host).message
    assert server.sent == 0


def test_the_token_opens_the_gate_and_goes_to_the_hub_alone(
    server: Hub, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add(REPO, checkpoint())
    server.repos[REPO].gated, server.repos[REPO].token = True, TOKEN
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    resolved_and_pulled(server, host)
    seen = {r.server: "authorization" in r.headers for r in server.requests}
    assert seen == {"hub": True, "cdn": False}
    kept = [path for path in host.root.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert kept == []


def test_access_withdrawn_in_the_middle(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())
    server.fail("/resolve/", status=403, headers={"X-Error-Code": "GatedRepo"}, times=None)
    assert "accepted its terms" in refusal(server, host).message


def test_no_network(server: Hub, host: Host) -> None:
    error = refusal(server, host, hf_endpoint="http://127.0.0.1:9")
    assert "no answer from http://127.0.0.1:9" in error.message
    assert "--hf-endpoint" in error.hint


def test_a_password_in_the_endpoint_is_not_shown(server: Hub, host: Host) -> None:
    error = refusal(server, host, hf_endpoint="http://me:hidden@127.0.0.1:9")
    assert "hidden" not in error.message + error.hint


@pytest.mark.parametrize(
    "body", [b"<html>hello</html>", b"{}", b'{"id": "x", "sha": "../../x", "siblings": []}', b"[]"]
)
def test_an_endpoint_that_is_no_hub(server: Hub, host: Host, body: bytes) -> None:
    server.fail("/api/models", status=200, body=body, headers={"Content-Type": "application/json"})
    assert "does not answer as a model hub" in refusal(server, host).message


def test_a_hub_that_stays_broken(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())
    server.fail("/lfs/", status=500, times=None)
    assert "status 500" in refusal(server, host).message
    server.faults.clear()
    server.fail("/lfs/", cut=0, times=None)
    assert "no answer" in refusal(server, host).message


def test_a_file_that_is_listed_but_not_there(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())
    server.fail("/resolve/.*/config.json", status=404, headers={"X-Error-Code": "EntryNotFound"}, times=None)
    assert "lists a file" in refusal(server, host).message


def test_a_repository_without_all_its_shards(server: Hub, host: Host) -> None:
    files = checkpoint()
    del files[SHARD]
    server.add(REPO, files)
    assert f"{SHARD} is missing" in refusal(server, host).message


def test_a_disk_too_small_is_known_before_the_first_byte(
    server: Hub, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add(REPO, checkpoint())
    monkeypatch.setattr(models, "HEADROOM", 1 << 60)
    assert "has only" in refusal(server, host).message
    assert server.sent == 0


@pytest.mark.root
def test_a_disk_that_fills_up_meanwhile(server: Hub, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add(REPO, checkpoint())
    host.make_dir(LAYOUT.hub)
    disk = host.at(LAYOUT.hub)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k,mode=755", "small", disk], check=True)
    try:
        assert "has only" in refusal(server, host).message
        monkeypatch.setattr(models, "HEADROOM", -(1 << 60))
        assert "disk is full" in refusal(server, host).message
        subprocess.run(["mount", "-o", "remount,size=2m", disk], check=True)
        sent = server.sent
        missing = resolve(settings(server), host, LAYOUT).bytes_missing
        resolved_and_pulled(server, host)
        assert server.sent - sent == missing
    finally:
        subprocess.run(["umount", disk], check=True)


# Directories and the built-in model


def test_a_local_directory_is_served_where_it_lies(host: Host) -> None:
    host.make_dir(Path("/models/Org/Name"))
    model = resolve(settings(model="/models/Org/Name"), host, LAYOUT)
    assert (model.path, model.source, model.commit, model.id) == (Path("/models/Org/Name"), "local", None, "Name")
    assert due(model, host) == []


def test_a_relative_path_below_the_models_directory_comes_before_the_hub(server: Hub, host: Host) -> None:
    host.make_dir(Path("/models/Org/Tiny"))
    host.make_dir(Path("/models/a/b/c/d"))
    assert resolve(settings(server, models_dir="/models"), host, LAYOUT).source == "local"
    deep = resolve(settings(server, models_dir="/models", model="a/b/c/d"), host, LAYOUT)
    assert deep.path == Path("/models/a/b/c/d")
    assert server.requests == []
    server.add("Org/Absent", checkpoint())
    assert resolve(settings(server, models_dir="/models", model="Org/Absent"), host, LAYOUT).source == "hub"


@pytest.mark.parametrize("model", ["/models/None", "./nothing/here", "a/b/c"])
def test_a_directory_that_is_not_there(host: Host, model: str) -> None:
    with pytest.raises(ModelError):
        resolve(settings(model=model), host, LAYOUT)
    with pytest.raises(ModelError, match="no model directory"):
        resolve(settings(model=model, models_dir="/models"), host, LAYOUT)


def test_the_builtin_model_is_made_once(host: Host) -> None:
    model = resolve(settings(model="builtin:tiny"), host, LAYOUT)
    assert (model.id, model.path) == ("builtin:tiny", LAYOUT.builtin_models / "tiny")
    assert due(model, host) == [MakeBuiltin(model.path)]
    MakeBuiltin(model.path).apply(host, Report())
    assert due(model, host) == []


# Whether a directory is complete


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name, content in checkpoint().items():
        if name in WANTED:
            (tmp_path / "m" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "m" / name).write_bytes(content)
    return tmp_path / "m"


def test_a_complete_directory_has_no_problems(directory: Path) -> None:
    assert check_directory(directory) == []


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("config.json", None, "config.json is missing"),
        ("config.json", b"[1]", "no JSON object"),
        ("config.json", b"{", "damaged"),
        ("config.json", b"[" * 100_000, "damaged"),
        ("config.json", b"\xff\xfe{", "damaged"),
        ("config.json", b'{"vision_config": {}}', "preprocessor_config.json"),
        ("tokenizer.json", None, "no tokenizer"),
        (SHARD, None, f"{SHARD} is missing"),
        (SHARD, b"", "impossible length"),
        (SHARD, b"\xff" * 8 + b"{}", "impossible length"),
        (SHARD, (200).to_bytes(8, "little") + b"{" * 300, "no JSON"),
        (SHARD, (2).to_bytes(8, "little") + b"[]", "no JSON object"),
        (SHARD, (1 << 30).to_bytes(8, "little") + b"{}", "impossible length"),
        (SHARD, weights(1, 1000)[:-1], "should hold 1000 bytes"),
        (SHARD, weights(1, 1000).replace(b"[0, 1000]", b"[9, 1000]").replace(b"[9, ", b"[-1,"), "no place"),
        ("model.safetensors.index.json", b"{}", "names no weights"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "../../etc/shadow"}}', "outside"),
    ],
)
def test_what_is_missing_or_damaged_is_named(directory: Path, name: str, content: bytes | None, problem: str) -> None:
    (directory / name).unlink()
    if content is not None:
        (directory / name).write_bytes(content)
    assert any(problem in found for found in check_directory(directory)), check_directory(directory)


def test_every_problem_is_named_at_once(directory: Path) -> None:
    (directory / "config.json").unlink()
    (directory / "tokenizer.json").unlink()
    (directory / SHARD).unlink()
    assert len(check_directory(directory)) == 3


def test_pickles_alone_are_named(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    (found,) = check_directory(tmp_path)
    assert "pickles (pytorch_model.bin)" in found


def test_the_consolidated_form_is_complete_too(tmp_path: Path) -> None:
    for name in ("params.json", "tekken.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "consolidated.safetensors").write_bytes(weights(1, 10))
    assert check_directory(tmp_path) == []


def test_what_the_services_user_cannot_reach_is_named(host: Host) -> None:
    path = Path("/home/me/model")
    host.make_dir(path)
    (host.at(path) / "config.json").write_text("{}")
    assert check_access(path, host) == []
    (host.at(path) / "config.json").chmod(0o600)
    host.at(Path("/home/me")).chmod(0o700)
    host.at(path).chmod(0o711)
    assert [problem.split(" (")[0].rpartition(" ")[2] for problem in check_access(path, host)] == [
        "/home/me/model", "/home/me", "/home/me/model/config.json",
    ]  # fmt: skip
