"""A hub that answers anything at all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from installer.base.host import Host
from installer.base.report import Report
from installer.spec.model import ModelError, ModelFile, Origin, is_inside
from installer.weights import hub
from installer.weights.wire import LineFault, Wire
from tests.fuzz.hostile import JSON, NESTED, TEXT, as_bytes, is_ours, outcome, planted, tampered
from tests.kit.hub import Hub
from tests.kit.weights import REPO, checkpoint, pull

COMMIT = "a" * 40
SMALL = {"rfilename": "config.json", "size": 2, "blobId": "b" * 40}
LARGE = {
    "rfilename": "model.safetensors", "size": 9, "blobId": "c" * 40,
    "lfs": {"sha256": "d" * 64, "size": 9, "pointerSize": 127},
}  # fmt: skip
MODEL = {"id": REPO, "sha": COMMIT, "private": False, "gated": False, "tags": [], "siblings": [SMALL, LARGE]}
MODELSCOPE = {
    "Success": True,
    "Data": {
        "LatestCommitter": {"Id": COMMIT},
        "Files": [
            {
                "Type": "blob",
                "Path": "config.json",
                "Size": 2,
                "Sha256": "d" * 64,
                "Revision": COMMIT,
                "CommittedDate": 1,
            }
        ],
    },
}


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with pytest.MonkeyPatch.context() as patch, Hub() as running:
        for name in ("HF_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            patch.delenv(name, raising=False)
        patch.setattr(hub, "BUSY_DELAYS", (0.0, 0.0))
        yield running


def listed(server: Hub, provider: str, body: bytes) -> None:
    """What a listing comes to: a commit with files that can be fetched, or a refusal."""
    server.faults.clear()
    server.fail("^/api/", times=None, status=200, headers={"Content-Type": "application/json"}, body=body)
    origin = Origin(REPO, None, server.url, provider)
    found = outcome(lambda: hub.listing(origin, None))
    if isinstance(found, tuple):
        commit, files = found
        assert re.fullmatch("[0-9a-f]{40}", commit)
        for file in files:
            assert isinstance(file, ModelFile)
            assert is_inside(file.name)
            assert type(file.size) is int
            is_ours(file.name)


@given(tampered(MODEL).map(as_bytes) | JSON.map(as_bytes) | NESTED | st.binary(max_size=50))
@settings(max_examples=400)
@example(as_bytes({**MODEL, "sha": 5}))
@example(as_bytes({**MODEL, "siblings": [{**SMALL, "size": "2"}]}))
@example(as_bytes({**MODEL, "siblings": [{**SMALL, "rfilename": 7}]}))
@example(as_bytes({**MODEL, "siblings": [{**SMALL, "rfilename": "a/" * 3000 + "b"}]}))
@example(as_bytes(planted(MODEL, ("siblings", 1, "lfs"), {"sha256": None, "size": None, "pointerSize": None})))
@example(b"[" * 200_000)
def test_a_listing(server: Hub, body: bytes) -> None:
    listed(server, "hub", body)


@given(tampered(MODELSCOPE).map(as_bytes) | JSON.map(as_bytes) | NESTED)
@settings(max_examples=200)
def test_a_listing_of_modelscope(server: Hub, body: bytes) -> None:
    listed(server, "modelscope", body)


@given(st.integers(200, 599), st.sampled_from(("retry-after", "location", "x-error-code", "x-error-message")), TEXT)
@settings(max_examples=150)
@example(429, "retry-after", "²")
@example(429, "retry-after", "9" * 400)
@example(503, "retry-after", "Wed, 21 Oct 9999 07:28:00 -2359")
def test_a_refusal_with_any_status_and_header(server: Hub, status: int, name: str, value: str) -> None:
    header = value.encode("latin-1", "replace").decode("latin-1").translate({10: 32, 13: 32})
    server.faults.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub, "LONGEST_WAIT", 0.0)
        server.fail("^/api/", times=None, status=status, headers={name: header}, body=b'{"error": "no"}')
        outcome(lambda: hub.listing(Origin(REPO, None, server.url), None))


NOWHERE = ("http://127.0.0.1:99999/", "http://127.0.0.1:x/", "http://[::1", "http://127.0.0.1:0/", "//", "x:y")
PATHS = st.text(st.characters(max_codepoint=255), max_size=9)
ADDRESSES = st.one_of(
    st.sampled_from(NOWHERE), st.builds("http://127.0.0.1:{}/{}".format, st.integers(65536, 10**9), PATHS), TEXT
)


@given(ADDRESSES)
@settings(max_examples=150)
def test_a_redirect(server: Hub, location: str) -> None:
    header = location.encode("latin-1", "replace").decode("latin-1").translate({10: 32, 13: 32})
    server.faults.clear()
    server.fail("^/moved$", times=None, status=302, headers={"Location": header})
    wire = Wire(server.url, {})
    try:
        outcome(lambda: wire.get(f"{server.url}/moved", {}).text(), allowed=(LineFault,))
    finally:
        wire.close()


@pytest.mark.parametrize("location", ["http://127.0.0.1:99999/x", "http://[::1", "http://127.0.0.1:x/"])
def test_a_download_that_is_sent_to_a_port_that_is_none(
    location: str, host: Host, plain_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Hub() as running:
        running.add(REPO, checkpoint())
        running.fail("/resolve/.*safetensors$", times=None, status=302, headers={"Location": location})
        found = outcome(lambda: pull(running, host, Report()))
    assert isinstance(found, ModelError)
    assert "leads to no web address" in found.message


@given(st.one_of(TEXT, st.text(max_size=300)))
@settings(max_examples=200)
@example("x" * 300)
@example("/" + "x" * 300)
@example("/x" * 3000)
@example("o/" + "x" * 300)
def test_a_models_name(text: str) -> None:
    from installer.spec import values
    from installer.spec.settings import Settings
    from installer.weights.models import resolve
    from tests.kit.weights import LAYOUT

    def find() -> object:
        model = values.model(text)
        return resolve(replace(Settings(), model=model, offline=True), Host(), LAYOUT)

    outcome(find, allowed=(ValueError,))
