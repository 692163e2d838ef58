"""The endpoint that stands in: asked only while no replica is up, for those with a key of ours, and never with it."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from installer.spec.settings import Settings
from installer.units.syntax import quote_exec
from tests.kit.gateway import HAPROXY, Answer, Gateway, gateway
from tests.kit.replica import Replica, replicas_on
from tests.runtime.test_gateway import are_up, eventually

pytestmark = pytest.mark.skipif(HAPROXY is None, reason="no haproxy here")
OURS, METRICS, EXPIRED, THEIRS = "sk-ours-0123456789", "sk-metrics-0123456789", "sk-expired-0123456789", "sk-theirs"
PLAIN = 'sk-"plain" $HOME 100%'.replace(" ", "-")
NO_HOLDING = Settings(service="q", hold=0, fallback_url="http://127.0.0.1/v1")


def digest(key: str) -> str:
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


def unit(*keys: str) -> str:
    words = [word for key in keys for word in ("--api-key", key)]
    return f"[Service]\nExecStart=/python /launcher.py launch {quote_exec(words)} -- serve m\nExecReload=/x\n"


@dataclass
class Place:
    gateway: Gateway
    replicas: list[Replica]
    outside: Replica
    unit: Path

    def ask(self, body: object = None, key: str | None = OURS, **more: str) -> Answer:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return self.gateway.ask(body or {"model": "m", "prompt": "x"}, headers=headers, **more)  # type: ignore[arg-type]


@contextlib.contextmanager
def placed(*more: str) -> Iterator[Place]:
    with replicas_on(2) as replicas, Replica("outside") as outside:
        ports = [replica.port for replica in replicas]
        with gateway(NO_HOLDING, ports, starts=False) as made:
            path = made.home / "unit"
            path.write_text(
                unit(f"ana={digest(OURS)}", f"watch:metrics={digest(METRICS)}", PLAIN,
                     f"old={digest(EXPIRED)}@2001-01-01T00:00:00Z")
            )  # fmt: skip
            (made.credentials / "fallback-key").write_text(THEIRS + "\n")
            made.extra = ("--fallback", f"http://127.0.0.1:{outside.port}/base/v1", "--keys", str(path), *more)
            made.start()
            eventually(lambda: are_up(made, 1, 2))
            yield Place(made, replicas, outside, path)


@pytest.fixture
def place() -> Iterator[Place]:
    with placed("--fallback-model", "their-model") as found:
        yield found


def all_down(place: Place) -> None:
    for replica in place.replicas:
        replica.die()
    eventually(lambda: are_up(place.gateway))


def test_it_is_asked_only_while_no_replica_is_up(place: Place) -> None:
    assert place.ask().json()["replica"] in ("r1", "r2")
    place.replicas[0].die()
    eventually(lambda: are_up(place.gateway, 2))
    assert {place.ask().json()["replica"] for _ in range(4)} == {"r2"}
    assert place.outside.asked == []
    place.replicas[1].die()
    eventually(lambda: are_up(place.gateway))
    answer = place.ask()
    assert answer.json()["replica"] == "outside"
    assert answer.headers["x-vllm-install-fallback"] == "yes"
    place.replicas[0].start()
    eventually(lambda: are_up(place.gateway, 1))
    answer = place.ask()
    assert answer.json()["replica"] == "r1"
    assert "x-vllm-install-fallback" not in answer.headers


def test_it_hears_its_own_key_and_model_and_nothing_of_the_caller_but_the_request(place: Place) -> None:
    all_down(place)
    told = {"Authorization": f"Bearer {OURS}", "X-Api-Key": OURS, "Cookie": "secret", "X-Forwarded-For": "1.2.3.4"}
    answer = place.gateway.ask({"model": "m", "prompt": "hello"}, headers=told)
    assert answer.status == 200
    (asked,) = place.outside.asked
    head, _, body = asked.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /base/v1/completions HTTP/1.1\r\n")
    assert f"authorization: bearer {THEIRS}".encode() in head.lower()
    assert json.loads(body) == {"model": "their-model", "prompt": "hello"}
    for secret in (OURS.encode(), b"secret", b"1.2.3.4", b"127.0.0.1:" + str(place.gateway.port).encode()):
        assert secret not in asked


def test_without_a_model_of_its_own_the_request_goes_as_it_is() -> None:
    with placed() as place:
        all_down(place)
        body = json.dumps({"model": "m", "prompt": "x" * (3 << 20)}).encode()
        answer = place.ask(body)
        assert (answer.status, answer.json()["length"]) == (200, len(body))


def test_streams_come_as_they_are(place: Place) -> None:
    all_down(place)
    answer = place.ask({"model": "m", "stream": True})
    assert answer.body.count(b"data: ") == 6
    assert answer.body.endswith(b"data: [DONE]\n\n")
    assert answer.headers["content-type"] == "text/event-stream"


@pytest.mark.parametrize("key", [None, "sk-unknown-0123456789", METRICS, EXPIRED, digest(OURS), ""])
def test_nobody_without_a_key_of_ours_asks_there(place: Place, key: str | None) -> None:
    all_down(place)
    assert place.ask(key=key).status == 401
    assert place.outside.asked == []


def test_a_key_in_clear_is_known_and_a_revoked_one_is_not(place: Place) -> None:
    all_down(place)
    assert place.ask(key=PLAIN).status == 200
    place.unit.write_text(unit(f"other={digest('x' * 20)}"))
    assert place.ask(key=PLAIN).status == place.ask().status == 401
    place.unit.unlink()
    assert place.ask().status in (401, 502, 503)
    assert len(place.outside.asked) == 1


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/collective_rpc", "/v1/../metrics", "/v1/completions/"])
def test_only_what_is_to_be_inferred_goes_there(place: Place, path: str) -> None:
    all_down(place)
    assert place.ask(path=path).status in (400, 503)
    assert place.ask(path=path, method="GET").status in (400, 503)
    assert place.outside.asked == []


@pytest.mark.parametrize(("theirs", "ours"), [(401, 502), (403, 502), (429, 429), (400, 400)])
def test_its_refusals_are_the_caller_s_unless_our_key_is_meant(place: Place, theirs: int, ours: int) -> None:
    all_down(place)
    place.outside.status = theirs
    assert place.ask().status == ours


def test_where_it_is_down_too_callers_are_told_to_come_again(place: Place) -> None:
    all_down(place)
    place.outside.die()
    answer = place.ask()
    assert (answer.status, answer.headers["retry-after"]) == (503, "10")
    assert "outside" not in answer.body.decode()


@pytest.mark.parametrize("body", [b"[]", b"{", b"null", b'"x"', b"[" * 100_000, b"\xff\xfe"])
def test_a_request_that_is_none_is_refused_here(place: Place, body: bytes) -> None:
    all_down(place)
    assert place.ask(body).status == 400
    assert place.outside.asked == []
