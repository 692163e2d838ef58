"""Models from anywhere: mirrors that are compared, ModelScope, tokens; and nobody is asked who was not chosen."""

from __future__ import annotations

import hashlib
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from installer.base.host import Host
from installer.base.report import Report
from installer.spec.model import Model, ModelError, Origin
from installer.spec.settings import Settings
from installer.weights import hub, inventory
from installer.weights.addresses import token_of
from installer.weights.models import changes, resolve
from installer.weights.wanted import is_present
from tests.kit.hub import File, Hub, Repo
from tests.kit.modelscope import ModelScope
from tests.kit.proxy import Proxy
from tests.kit.weights import CHILD, LAYOUT, REPO, SHARD, TOKEN, WANTED, checkpoint, served, settings

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def mirror(plain_network: None) -> Iterator[Hub]:
    with Hub() as running:
        yield running


@pytest.fixture
def scope(plain_network: None) -> Iterator[ModelScope]:
    with ModelScope() as running:
        yield running


class Warnings(Report):
    def __init__(self) -> None:
        self.said: list[str] = []

    def warn(self, text: str) -> None:
        self.said.append(text)


def fetch(host: Host, chosen: Settings, report: Report | None = None) -> Model:
    model = resolve(chosen, host, LAYOUT, report=report)
    for change in changes(model, host, chosen):
        change.apply(host, report or Report())
    return model


def whole(host: Host, model: Model) -> bool:
    return served(host, model) == {name: checkpoint()[name] for name in WANTED}


def from_sources(*words: str, **what: object) -> Settings:
    return settings(model_sources=words, **what)


# In order, and nobody else


def test_a_source_that_is_not_there_or_lacks_the_model_is_followed_by_the_next(
    server: Hub, mirror: Hub, host: Host
) -> None:
    server.add(REPO, checkpoint())
    report = Warnings()
    model = fetch(host, from_sources(NOWHERE, mirror.url, server.url), report)
    assert whole(host, model)
    assert model.endpoint == server.url
    assert [mirror.url in said or NOWHERE in said for said in report.said[:2]] == [True, True]


def test_the_last_source_ends_it_with_its_own_fault(server: Hub, host: Host) -> None:
    with pytest.raises(ModelError, match="has no model"):
        fetch(host, from_sources(NOWHERE, server.url))


def test_a_closed_gate_is_an_answer_and_no_reason_to_go_round_it(server: Hub, mirror: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())
    server.repos[REPO].gated, server.repos[REPO].token = True, TOKEN
    mirror.add(REPO, checkpoint())
    with pytest.raises(ModelError, match="accepted its terms"):
        fetch(host, from_sources(server.url, mirror.url))
    assert mirror.requests == []


def test_one_source_alone_is_asked_where_one_is_chosen(server: Hub, mirror: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())
    assert whole(host, fetch(host, settings(server)))
    assert mirror.requests == []


def test_a_source_that_dies_in_the_middle_is_continued_by_the_next(server: Hub, mirror: Hub, host: Host) -> None:
    for one in (server, mirror):
        one.add(REPO, checkpoint())
    server.fail("/lfs/", status=503, times=None)
    report = Warnings()
    assert whole(host, fetch(host, from_sources(server.url, mirror.url), report))
    assert any("503" in said and mirror.url in said for said in report.said), report.said


# Truth


def test_mirrors_that_agree_are_both_asked_once(server: Hub, mirror: Hub, host: Host) -> None:
    for one in (server, mirror):
        one.add(REPO, checkpoint())
    assert whole(host, fetch(host, from_sources(server.url, mirror.url)))
    assert [request.path for request in mirror.requests] == [f"/api/models/{REPO}/revision/{head(server)}"]


def head(one: Hub) -> str:
    return one.repos[REPO].refs["main"]


def forge(truthful: Hub, liar: Hub) -> None:
    """The liar gives another file under the commit of the truthful one."""
    commit = truthful.add(REPO, checkpoint())
    files = {
        name: File(content, truthful.repos[REPO].commits[commit][name].lfs) for name, content in checkpoint().items()
    }
    files[SHARD] = File(checkpoint(seed=7)[SHARD], lfs=True)
    liar.repos[REPO] = Repo({commit: files}, {"main": commit})


def test_a_mirror_that_gives_other_checksums_for_a_commit_is_an_error(server: Hub, mirror: Hub, host: Host) -> None:
    forge(server, mirror)
    for order in ((mirror.url, server.url), (server.url, mirror.url)):
        with pytest.raises(ModelError, match=f"contradict each other: different checksums for {SHARD}") as caught:
            fetch(host, from_sources(*order))
        assert "not truthful" in caught.value.hint
    assert server.sent == mirror.sent == 0


def test_what_was_listed_for_a_commit_before_still_holds(server: Hub, mirror: Hub, host: Host) -> None:
    forge(server, mirror)
    fetch(host, settings(server))
    with pytest.raises(ModelError, match=f"what {server.url} listed earlier contradict"):
        resolve(settings(mirror), host, LAYOUT)


def test_a_listing_that_contradicts_its_own_commit_is_an_error(server: Hub, host: Host) -> None:
    """The commit holds a pointer with the checksum in it, and the listing names that pointer."""
    commit = server.add(REPO, checkpoint())
    server.repos[REPO].commits[commit][SHARD].git_sha1 = "0" * 40
    with pytest.raises(ModelError, match="contradicts itself"):
        resolve(settings(server), host, LAYOUT)


def test_the_pointer_of_a_real_file_has_the_name_that_the_real_hub_gives_it() -> None:
    # gpt2's pytorch_model.bin, as the hub client's own documentation lists it
    sha256, size = "9be78edb5b928eba33aa88f431551348f7466ba9f5ef3daf1d552398722a5436", 548123560
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    assert hub.git_digest(pointer) == "64eaa9c526867e404b68f2c5d66fd78e27026523"


def test_another_commit_than_was_asked_for_is_an_error(server: Hub, host: Host) -> None:
    first = server.add(REPO, checkpoint())
    second = server.add(REPO, checkpoint(seed=2))
    server.repos[REPO].refs[first] = second
    with pytest.raises(ModelError, match=f"answers with the commit {second} where {first}"):
        resolve(settings(server, revision=first), host, LAYOUT)


# Tokens


def test_a_token_from_a_file_opens_the_gate_and_stays_in_the_file(server: Hub, host: Host, tmp_path: Path) -> None:
    server.add(REPO, checkpoint())
    server.repos[REPO].gated, server.repos[REPO].token = True, TOKEN
    file = tmp_path.parent / f"{tmp_path.name}.token"
    file.write_text(f"{TOKEN}\n")
    assert whole(host, fetch(host, settings(server, hf_token_file=str(file))))
    kept = [path for path in host.root.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert kept == []
    assert {r.server: "authorization" in r.headers for r in server.requests} == {"hub": True, "cdn": False}


@pytest.mark.parametrize("content", [None, "", "two words", "\xff"])
def test_a_file_without_a_token_is_named(server: Hub, host: Host, tmp_path: Path, content: str | None) -> None:
    server.add(REPO, checkpoint())
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content, encoding="latin-1")
    with pytest.raises(ModelError, match=r"token") as caught:
        resolve(settings(server, hf_token_file=str(file)), host, LAYOUT)
    assert str(file) in caught.value.message
    assert server.requests == []


def test_a_login_at_the_hub_is_not_shown_to_a_mirror(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN", raising=False)
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    assert token_of(Origin(REPO, None, None)) == TOKEN
    assert token_of(Origin(REPO, None, "https://mirror.example")) is None
    monkeypatch.setenv("HF_TOKEN", "hf_for_whoever_was_named")
    assert token_of(Origin(REPO, None, "https://mirror.example")) == "hf_for_whoever_was_named"


def test_modelscope_gets_its_own_token_and_the_hubs_never(
    scope: ModelScope, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    scope.add(REPO, checkpoint())
    fetch(host, from_sources(f"modelscope+{scope.url}"))
    assert not any("authorization" in asked.headers for asked in scope.asked)
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms-secret")
    scope.add(REPO, checkpoint(seed=3))
    scope.asked.clear()
    fetch(host, from_sources(f"modelscope+{scope.url}"))
    for asked in scope.asked:
        secrets = [asked.headers.get(name) for name in ("authorization", "cookie")]
        elsewhere = asked.path.startswith("/lfs/")
        assert secrets == ([None, None] if elsewhere else ["Bearer ms-secret", "m_session_id=ms-secret"])
    assert any(asked.path.startswith("/lfs/") for asked in scope.asked)


# ModelScope


def test_parity_row_18_modelscope_in_place_of_a_hub_that_cannot_be_reached(scope: ModelScope, host: Host) -> None:
    """S1's troubleshooting: the download fails, take a mirror."""
    commit = scope.add(REPO, checkpoint())
    report = Warnings()
    chosen = from_sources("hub", f"modelscope+{scope.url}", hf_endpoint=NOWHERE)
    model = fetch(host, chosen, report)
    assert (model.commit, model.source, whole(host, model)) == (commit, "modelscope", True)
    assert any(NOWHERE in said and scope.url in said for said in report.said)
    revisions = {asked.path.partition("Revision=")[2][:40] for asked in scope.asked if "FilePath" in asked.path}
    assert revisions == {commit}, "every file of the one commit"
    asked = len(scope.asked)
    assert is_present(resolve(chosen, host, LAYOUT, commit), host)
    offline = from_sources("hub", f"modelscope+{scope.url}", hf_endpoint=NOWHERE, offline=True)
    assert resolve(offline, host, LAYOUT).path == model.path
    assert len(scope.asked) == asked


def test_the_commit_is_found_although_most_files_are_older(scope: ModelScope, host: Host) -> None:
    scope.add(REPO, checkpoint())
    second = scope.add(REPO, checkpoint() | {"README.md": b"new"})
    assert resolve(from_sources(f"modelscope+{scope.url}"), host, LAYOUT).commit == second
    scope.names_head = False
    assert resolve(from_sources(f"modelscope+{scope.url}"), host, LAYOUT).commit == second


def test_a_commit_that_only_removed_a_file_cannot_be_named_and_that_is_said(scope: ModelScope, host: Host) -> None:
    scope.add(REPO, checkpoint())
    less = {name: content for name, content in checkpoint().items() if name != "README.md"}
    commit = scope.add(REPO, less)
    with pytest.raises(ModelError, match="does not say which commit") as caught:
        resolve(from_sources(f"modelscope+{scope.url}"), host, LAYOUT)
    assert "--revision" in caught.value.hint
    assert resolve(from_sources(f"modelscope+{scope.url}", revision=commit), host, LAYOUT).commit == commit


def test_files_that_both_have_are_fetched_once(server: Hub, scope: ModelScope, host: Host) -> None:
    server.add(REPO, checkpoint())
    fetch(host, settings(server))
    scope.add(REPO, checkpoint())
    fetch(host, from_sources(f"modelscope+{scope.url}"))
    assert not any(SHARD in asked.path and "FilePath" in asked.path for asked in scope.asked), "its sha256 is known"
    assert {one.source for one in inventory.models(host)} == {server.url, scope.url}


def test_wrong_bytes_from_modelscope_are_an_error(scope: ModelScope, host: Host) -> None:
    scope.add(REPO, checkpoint())
    scope.lie = b"x" * 400_000
    with pytest.raises(ModelError, match="wrong bytes"):
        fetch(host, from_sources(f"modelscope+{scope.url}"))


@pytest.mark.parametrize(("model", "revision"), [("Org/None", None), (REPO, "v9"), (REPO, hashlib.sha1().hexdigest())])
def test_what_modelscope_does_not_have(scope: ModelScope, host: Host, model: str, revision: str | None) -> None:
    scope.add(REPO, checkpoint())
    with pytest.raises(ModelError, match="has no"):
        resolve(from_sources(f"modelscope+{scope.url}", model=model, revision=revision), host, LAYOUT)


def test_what_is_no_modelscope(server: Hub, host: Host) -> None:
    server.fail("/api/v1", status=200, body=b"<html>", headers={"Content-Type": "text/html"}, times=None)
    with pytest.raises(ModelError, match="does not answer as a model hub does"):
        resolve(from_sources(f"modelscope+{server.url}"), host, LAYOUT)


# By hand


@contextmanager
def no_requests(server: Hub) -> Iterator[None]:
    before = len(server.requests)
    yield
    assert len(server.requests) == before


def test_parity_row_18_files_put_there_by_hand(server: Hub, host: Host) -> None:
    """S1's other way: fetch the files elsewhere and copy them; a directory is served where it lies, no hub asked."""
    path = Path("/models/Org/Tiny")
    for name in WANTED:
        host.make_dir((path / name).parent)
        host.at(path / name).write_bytes(checkpoint()[name])
    with no_requests(server):
        for chosen in (settings(server, model=str(path)), settings(server, model="Org/Tiny", models_dir="/models")):
            model = fetch(host, chosen)
            assert (model.path, model.source) == (path, "local")


# Through a proxy


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost and its key, in one file."""
    path = tmp_path_factory.mktemp("tls") / "hub.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=hub",
         "-addext", "subjectAltName=IP:127.0.0.1,IP:127.0.0.2", "-keyout", path, "-out", f"{path}.crt"],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


def fetch_as_a_process(host: Host, server: Hub, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CHILD, str(host.root), server.url],
        capture_output=True, text=True, timeout=120,
        env={"PATH": os.environ["PATH"], "HOME": str(host.root), "PYTHONPATH": os.getcwd(), **environment},
    )  # fmt: skip


def test_parity_row_18_everything_goes_through_the_proxy_that_sees_no_token(host: Host, certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with Hub(tls=context) as server, Proxy() as proxy:
        server.add(REPO, checkpoint())
        server.repos[REPO].gated, server.repos[REPO].token = True, TOKEN
        trust = {"SSL_CERT_FILE": f"{certificate}.crt", "HF_TOKEN": TOKEN}
        ran = fetch_as_a_process(host, server, HTTPS_PROXY=proxy.url, **trust)
        assert ran.returncode == 0, ran.stderr
        hosts = {urlsplit(server.url).netloc, urlsplit(server.cdn).netloc}
        assert {said.removeprefix("CONNECT ") for said in proxy.asked} == hosts
        assert proxy.secrets == []
        assert whole(host, resolve(settings(server, offline=True), host, LAYOUT))


def test_a_proxy_for_plain_http_and_the_hosts_that_need_none(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())
    with Proxy() as proxy:
        around = fetch_as_a_process(host, server, HTTP_PROXY=proxy.url, NO_PROXY="127.0.0.1,127.0.0.2")
        assert (around.returncode, proxy.asked) == (0, []), around.stderr
        assert whole(host, resolve(settings(server, offline=True), host, LAYOUT))
        shutil.rmtree(host.at(LAYOUT.hub))
        ran = fetch_as_a_process(host, server, HTTP_PROXY=proxy.url)
        assert ran.returncode == 0, ran.stderr
        assert len(proxy.asked) == len(WANTED) + 1 + sum(r.server == "cdn" for r in server.requests) // 2


def test_a_proxy_that_is_not_there_is_named_as_the_cause(server: Hub, host: Host) -> None:
    server.add(REPO, checkpoint())
    ran = fetch_as_a_process(host, server, HTTP_PROXY=NOWHERE)
    assert "HTTPS_PROXY" in ran.stderr or "no answer" in ran.stderr
    assert server.requests == []
