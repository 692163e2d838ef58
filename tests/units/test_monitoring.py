"""The key of who watches every service: known by its digest, and not asked for where nobody watches."""

from __future__ import annotations

import pytest

from installer.base.errors import UsageError
from installer.base.host import Host
from installer.spec.keys import TO_BE_MADE, Key, digest, parse
from installer.units import monitoring


def test_who_may_not_read_the_key_sees_that_there_is_one(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    assert monitoring.key(host) is None
    host.write(monitoring.KEY, "sk-of-the-watcher\n", 0o600)
    assert monitoring.key(host) == Key("monitor", digest("sk-of-the-watcher"), "metrics")

    def closed(*_: object) -> str:
        raise PermissionError

    monkeypatch.setattr(Host, "word", closed)
    assert monitoring.key(host) == Key("monitor", TO_BE_MADE, "metrics")


CLIENT, OWN = Key("default", digest("a")), Key("monitor", digest("b"), "metrics")
GPU2, GPU3 = (Key(f"monitor-of-gpu{number}", digest(str(number)), "metrics") for number in (2, 3))


def test_the_others_are_as_they_were_told_last_and_who_could_not_be_asked_stays() -> None:
    held = (CLIENT, GPU2, GPU3, OWN)
    assert monitoring.read_by(held, {"gpu2": digest("new"), "gpu3": None}) == (
        CLIENT, OWN, Key("monitor-of-gpu2", digest("new"), "metrics"), GPU3,
    )  # fmt: skip
    assert monitoring.read_by(held, {"gpu2": ""}) == monitoring.read_by(held, {}) == (CLIENT, OWN)
    assert monitoring.read_by((CLIENT,), {"Gpu2.example": digest("2")})[1].name == "monitor-of-gpu2_example"
    alike = ("a.b", "a-b", "a_b", "a_.b", "a__b", "a.b.c", "a_b_c", "ab")
    assert len({monitoring.name_of(name) for name in alike}) == len(alike)


@pytest.mark.parametrize("said", ["x", f"{digest('2')} --port 1", f"{digest('2')}@2099-01-01T00:00:00Z x", "\n"])
def test_what_is_no_digest_does_not_come_into_a_unit(said: str) -> None:
    with pytest.raises(UsageError):
        monitoring.read_by((CLIENT,), {"gpu2": said})


@pytest.mark.parametrize(
    ("argument", "is_its_own"),
    [
        ("monitor:metrics=", True), ("monitor-old:metrics=", True), ("monitor-old-2:metrics=", True),
        ("monitor-of-gpu2:metrics=", True), ("monitor-older:metrics=", False), ("monitoring:metrics=", False),
        ("monitor=", False), ("monitor-of-gpu2:admin=", False),
    ],
)  # fmt: skip
def test_only_what_reads_figures_is_a_matter_of_one_host(argument: str, is_its_own: bool) -> None:
    assert monitoring.watches(parse(f"{argument}sha256:{digest('x')}")) is is_its_own
