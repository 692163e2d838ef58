"""Weights from one host of a group to others: real far ends on temporary roots, and whatever can go wrong between."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from installer.base.errors import Exit, InstallError
from installer.base.host import Host
from installer.base.report import Report
from installer.flow import needs
from installer.flow.request import Request
from installer.group import change, copies
from installer.group.copies import Copy
from installer.group.job import Job
from installer.group.reach import Connection, Lost, Team
from installer.spec.model import ModelFile, distinct
from installer.spec.offer import Offer, packed, unpacked
from installer.spec.record import UNREADABLE, read_as
from installer.spec.settings import Settings
from installer.weights import cache, handover
from installer.weights.about import of_model
from installer.weights.models import changes, resolve
from installer.weights.partial import BLOCK, Partial, partial_path
from tests.group.world import Told
from tests.kit.hub import Hub
from tests.kit.weights import LAYOUT, REPO, SHARD, WANTED, checkpoint, pull, served, settings

FOLDER = LAYOUT.hub / "models--Org--Tiny"
SIZE = 3_000_000  # bytes of each shard
NOBODY = "http://127.0.0.1:9"  # a hub that no host can reach
FAR = """
import sys
from pathlib import Path
from installer.base.host import Host
from installer.group.session import End
root, end, fault = sys.argv[1:]
exec(fault)
End(sys.stdin.buffer, sys.stdout.buffer, Host(Path(root))).serve(getattr(End, end))
"""
FULL = "import shutil; shutil.disk_usage = lambda path: type('', (), {'free': 1000})"
JOB = Job("deploy", ("deploy",), stages=True)


class Site:
    """Hosts by name; those in `reaches` have a way to the hub. What passes between them may be changed."""

    def __init__(self, root: Path, server: Hub, *names: str) -> None:
        self.root, self.server = root, server
        self.hosts = {name: Host(root / name) for name in names}
        self.leader = Host(root / "leader")
        for host in (*self.hosts.values(), self.leader):
            host.make_dir(Path("/var/cache"))
        self.reaches = set(names)
        self.here: str | None = None
        self.faults: dict[str, str] = {}
        self.given: dict[str, int] = {}
        self.passes: Callable[[bytes], bytes] = bytes
        self.said: list[str] = []
        self.offline = False

    @property
    def team(self) -> Team:
        return Team([Far(name, self) for name in self.hosts], {}, self.beside, self.here)

    def settings(self, name: str) -> Settings:
        url = self.server.url if name in self.reaches else NOBODY
        return settings(hf_endpoint=url, offline=self.offline)

    @contextmanager
    def beside(self, ends: Mapping[str, str]) -> Iterator[dict[str, Connection]]:
        with ExitStack() as held:
            found = {}
            for name, end in ends.items():
                root = str(self.hosts.get(name, self.leader).root)
                argv = (sys.executable, "-c", FAR, root, end, self.faults.get(name, ""))
                process = held.enter_context(Host().conversing(*argv))
                found[name] = Passing(name, "qwen3vl", process, Report(), self)
                held.callback(found[name].close)
                found[name].open("en", here=True, end=end)
            yield found

    def arranged(self) -> tuple[Job, tuple[Copy, ...]]:
        return copies.arranged(self.team, self.hosts, JOB, self.leader)

    def run(self) -> None:
        """As a change does it, up to the switch."""
        job, given = self.arranged()
        for copy in given:
            if not copy.begun:
                change._run_all(self.team, [copy.offer.host], job, *change.STAGE)
            copies.carry_out(copy, self.team, Told(self.said))
        change._run_all(self.team, [*self.hosts], job, *change.STAGE)

    def blobs(self, name: str) -> Path:
        return self.hosts[name].at(FOLDER / "blobs")

    def holds(self, name: str) -> bool:
        host = self.hosts[name]
        model = resolve(settings(hf_endpoint=NOBODY, offline=True), host, LAYOUT)
        assert cache.unchecked(FOLDER, model.files, host) == []
        return served(host, model) == {file: checkpoint(size=SIZE)[file] for file in WANTED}


class Far:
    """A host as it answers, by the same functions that its command line calls."""

    here = False

    def __init__(self, name: str, site: Site) -> None:
        self.name, self.site = name, site

    def ask(self, do: str, **given: Any) -> Any:
        words, host = given["words"], self.site.hosts[self.name]
        texts = [words[at + 1] for at, word in enumerate(words) if word == "--offered"]
        offers = tuple(read_as(Offer, json.loads(text)) for text in texts)
        request = Request("deploy", self.site.settings(self.name), caches=offers)
        try:
            out = self._staged(request, host) if "needs" not in words else self._needs(request, host)
        except InstallError as error:
            return {"code": int(error.exit_code), "out": "", "message": error.message, "hint": error.hint}
        return {"code": 0, "out": out, "message": "", "hint": ""}

    def _needs(self, request: Request, host: Host) -> str:
        return json.dumps([dataclasses.asdict(need) for need in needs.of(request, host, Told(self.site.said))])

    def _staged(self, request: Request, host: Host) -> str:
        report, caches = Told(self.site.said), request.caches
        model = resolve(request.settings, host, LAYOUT, None, report, caches)
        of_model(model, host, request.settings, report, caches)
        for due in changes(model, host, request.settings, None, caches):
            due.apply(host, report)
        return ""

    def stop(self) -> None: ...


class Passing(Connection):
    def __init__(self, *given: Any) -> None:
        *given, self.site = given
        super().__init__(*given)

    def take(self, most: int) -> bytes:
        data = self.site.passes(super().take(most))
        self.site.given[self.name] = self.site.given.get(self.name, 0) + len(data)
        return data


@pytest.fixture
def site(tmp_path: Path, server: Hub) -> Site:
    """gpu1 has the weights, and gpu2 no way to the hub."""
    server.add(REPO, checkpoint(size=SIZE))
    made = Site(tmp_path, server, "gpu1", "gpu2")
    pull(server, made.hosts["gpu1"])
    made.reaches = {"gpu1"}
    return made


TOTAL = sum(len(checkpoint(size=SIZE)[name]) for name in WANTED)


def failing(act: Callable[[], object], message: str) -> InstallError:
    with pytest.raises(InstallError, match=message) as caught:
        act()
    return caught.value


def test_a_host_without_a_way_to_the_hub_gets_all_of_it_from_one_that_has_it(site: Site) -> None:
    sent = site.server.sent
    site.run()
    assert site.holds("gpu2")
    assert site.server.sent == sent, "nobody fetched anything"
    assert site.given == {"gpu1": TOTAL}
    assert any("gpu2: weights of Org/Tiny from gpu1, 5.7 MiB" in line for line in site.said), site.said
    assert any("checksums of Org/Tiny are taken as gpu1 names them" in line for line in site.said)
    site.run()
    assert site.given == {"gpu1": TOTAL}, "the next change copies nothing"


def test_its_plan_says_so_and_nothing_is_there_yet(site: Site) -> None:
    job, (copy,) = site.arranged()
    assert (copy.offer.host, copy.to, copy.begun) == ("gpu1", ("gpu2",), True)
    assert set(job.more) == {"gpu2"}
    host, chosen = site.hosts["gpu2"], site.settings("gpu2")
    model = resolve(chosen, host, LAYOUT, caches=(copy.offer,))
    (due,) = changes(model, host, chosen, caches=(copy.offer,))
    assert "take Org/Tiny (5.7 MiB) from gpu1 into" in due.describe()
    assert due.to_json()["from"] == "gpu1"
    about = of_model(model, host, chosen, Report(), (copy.offer,))
    assert about.architectures == ("Qwen3ForCausalLM",), "its small files came with the offer"
    assert not host.exists(LAYOUT.hub)


def test_those_who_could_fetch_it_get_it_as_well_and_it_is_read_once_for_all(tmp_path: Path, server: Hub) -> None:
    server.add(REPO, checkpoint(size=SIZE))
    site = Site(tmp_path, server, "gpu1", "gpu2", "gpu3")
    pull(server, site.hosts["gpu2"])
    sent = server.sent
    site.run()
    assert all(site.holds(name) for name in site.hosts)
    assert site.given == {"gpu2": TOTAL}
    assert server.sent - sent < TOTAL / 10, "but for what a plan reads"


def test_what_nobody_has_is_fetched_by_one_that_can_and_then_given_to_one_that_cannot(
    tmp_path: Path, server: Hub
) -> None:
    server.add(REPO, checkpoint(size=SIZE))
    site = Site(tmp_path, server, "gpu1", "gpu2")
    site.reaches = {"gpu2"}
    _, (copy,) = site.arranged()
    assert (copy.offer.host, copy.to, copy.begun) == ("gpu2", ("gpu1",), False)
    site.run()
    assert site.holds("gpu1")
    assert site.holds("gpu2")


def test_whoever_leads_the_change_gives_what_he_has_himself(tmp_path: Path, server: Hub) -> None:
    server.add(REPO, checkpoint(size=SIZE))
    site = Site(tmp_path, server, "gpu1", "gpu2")
    pull(server, site.leader)
    site.reaches, site.offline = set(), True
    _, (copy,) = site.arranged()
    assert (copy.offer.host, copy.to) == ("the host where this was typed", ("gpu1", "gpu2"))
    site.run()
    assert site.holds("gpu1")
    assert site.holds("gpu2")


def test_where_each_can_fetch_what_nobody_has_each_does(tmp_path: Path, server: Hub) -> None:
    server.add(REPO, checkpoint())
    assert Site(tmp_path, server, "gpu1", "gpu2").arranged()[1] == ()


def test_hosts_that_want_different_commits_are_not_helped(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """gpu1 stays at what it was proved with, and gpu2 would begin with the newest."""
    before = site.hosts["gpu1"].word(FOLDER / "refs/main")
    site.server.add(REPO, checkpoint(seed=3))
    site.reaches = {"gpu1", "gpu2"}
    monkeypatch.setattr(needs, "known_commit", lambda of, _: before if of.download_connections == 7 else None)
    one, other = (site.settings(name) for name in ("gpu1", "gpu2"))
    one = dataclasses.replace(one, download_connections=7)
    monkeypatch.setattr(site, "settings", lambda name: one if name == "gpu1" else other)
    assert site.arranged()[1] == ()


def test_a_model_that_each_host_chooses_by_its_gpus_is_named_by_what_it_chose(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(needs.facts, "gather", lambda *_: None)
    monkeypatch.setattr(needs.advice, "with_model", lambda chosen, *_: dataclasses.replace(chosen, model=REPO))
    request = Request("deploy", settings(site.server, model="auto"))
    (need,) = needs.of(request, site.hosts["gpu1"], Report())
    assert (need.repo, need.gives, need.lacks) == (REPO, True, False)


# What goes wrong


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def test_a_byte_that_is_changed_on_the_way_is_found_out_by_who_gets_it(site: Site) -> None:
    site.passes = flip
    error = failing(site.run, r"gpu2: \S+ of Org/Tiny came from gpu1 with wrong bytes")
    assert error.exit_code == Exit.MODEL
    assert "models verify Org/Tiny --repair" in error.hint
    digests = {file.digest: file.name for file in offer(site).files}
    shown = [path.name for path in site.blobs("gpu2").iterdir() if path.name in digests]
    assert shown == [], "nothing is where somebody could read it"
    assert not site.hosts["gpu2"].exists(FOLDER / "snapshots")
    site.passes = bytes
    site.run()
    assert site.holds("gpu2")


def offer(site: Site) -> Offer:
    return site.arranged()[1][0].offer


def test_what_came_before_a_cut_is_not_sent_again(site: Site) -> None:
    def cut(data: bytes) -> bytes:
        if site.given.get("gpu1", 0) > TOTAL / 2:
            raise Lost("gpu1: it is away")
        return data

    site.passes = cut
    failing(site.run, "gpu1: it is away")
    before, site.passes = site.given.pop("gpu1"), bytes
    site.run()
    assert site.holds("gpu2")
    assert 0 < site.given["gpu1"] <= TOTAL - before + 2 * copies.PIECE, "but for what was on its way"


def test_a_host_that_gives_too_little_is_named_and_what_came_stays(site: Site) -> None:
    site.faults["gpu1"] = "import os; pour = os.sendfile; os.sendfile = lambda *a: 0 if a[2] else pour(*a[:3], 1000)"
    failing(site.run, "gpu1: .* is given to nobody")
    digest = next(file.digest for file in offer(site).files if file.name == SHARD)
    assert not (site.blobs("gpu2") / digest).exists()
    site.faults.clear()
    site.run()
    assert site.holds("gpu2")


def test_a_full_disk_is_said_before_the_first_byte(site: Site) -> None:
    site.faults["gpu2"] = FULL
    failing(site.run, "gpu2: Org/Tiny needs .* more, but .* has only 1000 B left")
    assert site.given == {}


def test_a_beginning_with_gaps_is_continued_where_the_first_gap_is(site: Site) -> None:
    """As a download by several connections leaves it; and what is wrong of it is found with the rest."""
    file = next(file for file in offer(site).files if file.name == SHARD)
    host, content = site.hosts["gpu2"], checkpoint(size=SIZE)[SHARD]
    host.make_dir(FOLDER / "blobs")
    partial = Partial(partial_path(site.blobs("gpu2") / file.digest), file.size)
    partial.write(0, memoryview(content[:1000]), record=True)
    partial.close()
    site.run()
    assert site.given == {"gpu1": TOTAL - 1000}
    assert site.holds("gpu2")


def test_each_gets_what_it_misses_itself_of_what_is_read_once(tmp_path: Path, server: Hub) -> None:
    server.add(REPO, checkpoint(size=SIZE))
    site = Site(tmp_path, server, "gpu1", "gpu2", "gpu3")
    pull(server, site.hosts["gpu1"])
    site.reaches = {"gpu1"}
    file, content = next(file for file in offer(site).files if file.name == SHARD), checkpoint(size=SIZE)[SHARD]
    for name, have in (("gpu2", 1000), ("gpu3", 2_000_000)):
        site.hosts[name].make_dir(FOLDER / "blobs")
        partial = Partial(partial_path(site.blobs(name) / file.digest), file.size)
        partial.write(0, memoryview(content[:have]), record=True)
        partial.close()
    site.run()
    assert site.given == {"gpu1": TOTAL - 1000}
    assert site.holds("gpu2")
    assert site.holds("gpu3")


def test_of_a_beginning_only_what_came_without_a_gap_counts(tmp_path: Path) -> None:
    partial = Partial(tmp_path / "x.incomplete", 3 * BLOCK)
    partial.write(0, memoryview(b"a" * 10), record=True)
    partial.write(BLOCK, memoryview(b"b" * BLOCK), record=True)
    assert (partial.keep_front(), partial.have, partial.counts) == (10, 10, [10, 0, 0])
    partial.close()


# Who may not be believed


def test_a_blob_in_whose_place_a_link_was_put_is_given_to_nobody(site: Site) -> None:
    """After it was looked at: what root could read otherwise would go to every host."""
    _, (copy,) = site.arranged()
    file = next(file for file in copy.offer.files if file.name == SHARD)
    secret = site.root / "secret"
    secret.write_bytes(b"s" * file.size)
    blob = site.blobs("gpu1") / file.digest
    blob.unlink()
    blob.symlink_to(secret)
    failing(lambda: copies.carry_out(copy, site.team, Report()), f"gpu1: {FOLDER}/blobs/{file.digest} is not what")
    assert site.given == {}


@pytest.mark.parametrize("spoil", [lambda blob: blob.chmod(0o666), lambda blob: (blob.unlink(), os.mkfifo(blob))])
def test_nor_one_that_others_can_write_or_that_is_no_file(site: Site, spoil: Callable[[Path], object]) -> None:
    _, (copy,) = site.arranged()
    spoil(site.blobs("gpu1") / copy.offer.files[0].digest)
    failing(lambda: copies.carry_out(copy, site.team, Report()), "is given to nobody")


@pytest.mark.parametrize("name", ["gpu1", "gpu2"])
def test_where_others_can_write_nothing_is_given_and_nothing_taken(site: Site, name: str) -> None:
    _, (copy,) = site.arranged()
    place = site.hosts[name].at(LAYOUT.hub.parent)
    place.mkdir(exist_ok=True)
    place.chmod(0o777)
    assert site.arranged()[1] == (), "each does what it would alone"
    failing(
        lambda: copies.carry_out(copy, site.team, Report()), f"{name}: {LAYOUT.hub.parent} can be changed by others"
    )


def test_a_link_in_the_place_of_a_partial_file_is_not_written_through(site: Site) -> None:
    file = offer(site).files[0]
    precious = site.root / "precious"
    precious.write_text("mine")
    site.hosts["gpu2"].make_dir(FOLDER / "blobs")
    partial_path(site.blobs("gpu2") / file.digest).symlink_to(precious)
    site.run()
    assert precious.read_text() == "mine"
    assert site.holds("gpu2")


@pytest.mark.parametrize("name", ["../../../etc/cron.d/x", "/etc/passwd", "a/../../b"])
def test_a_name_that_leads_out_of_the_model_is_refused(site: Site, name: str) -> None:
    _, (copy,) = site.arranged()
    wrong = dataclasses.replace(copy.offer, files=(ModelFile(name, 1, "0" * 64), *copy.offer.files))
    bad = dataclasses.replace(copy, offer=wrong)
    failing(lambda: copies.carry_out(bad, site.team, Report()), "gpu2: .*dangerous name")
    host = site.hosts["gpu2"]
    failing(lambda: resolve(site.settings("gpu2"), host, LAYOUT, caches=(wrong,)), "dangerous name")
    assert site.given == {}


@pytest.mark.parametrize(
    "what", [{"repo": "../../etc"}, {"commit": "../x"}, {"provider": "x"}, {"files": [{"name": "x"}]}, {"host": None}]
)
def test_an_offer_that_is_none_is_not_understood(site: Site, what: dict[str, object]) -> None:
    data = {**dataclasses.asdict(offer(site)), **what}
    with pytest.raises(UNREADABLE):
        read_as(Offer, json.loads(json.dumps(data)))


def test_the_hub_is_believed_where_it_can_be_asked(site: Site) -> None:
    """A host that lists other checksums than the hub is contradicted before anything is copied."""
    lied = tuple(dataclasses.replace(file, digest="0" * len(file.digest)) for file in offer(site).files)
    wrong = dataclasses.replace(offer(site), files=lied)
    chosen = settings(site.server)
    failing(lambda: resolve(chosen, site.hosts["gpu2"], LAYOUT, caches=(wrong,)), "gpu1 listed .*contradict each other")


def test_what_is_here_already_is_believed_more_than_an_offer(site: Site) -> None:
    site.run()
    _, held = site.hosts["gpu2"], needs.held(settings(), site.hosts["gpu2"])
    assert held
    lied = tuple(dataclasses.replace(file, digest="0" * len(file.digest)) for file in held.files)
    wrong = Offer("gpu1", held.repo, held.revision, held.provider, held.commit, lied)
    failing(lambda: copies.carry_out(Copy(wrong, ("gpu2",), True), site.team, Report()), "contradict each other")


def test_a_host_that_asks_for_what_was_not_offered_gets_nothing(site: Site) -> None:
    site.faults["gpu2"] = (
        "from installer.weights import handover\n"
        "handover.take = lambda offer, host, comes, ask, note: ask([handover.Part('0' * 64, 1, 0)])"
    )
    failing(site.run, "gpu2: it says what nobody understands")
    assert site.given == {}


def test_small_files_are_believed_by_their_sums_alone(site: Site) -> None:
    said = unpacked(offer(site).texts)
    assert "config.json" in said
    wrong = dataclasses.replace(offer(site), texts=packed({**said, "config.json": '{"architectures": ["Evil"]}'}))
    host, chosen = site.hosts["gpu2"], site.settings("gpu2")
    model = resolve(chosen, host, LAYOUT, caches=(wrong,))
    failing(lambda: of_model(model, host, chosen, Report(), (wrong,)), "no answer from")


@pytest.mark.parametrize("text", ["", "x", "eJw=", packed({})[:-8], packed({"a": "b" * 10})])
def test_texts_that_are_none_say_nothing(text: str) -> None:
    assert set(unpacked(text)) <= {"a"}


def test_no_more_is_unpacked_than_small_files_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("installer.spec.offer.MOST_TEXT", 1000)
    assert unpacked(packed({"a": "b" * 10_000})) == {}


def test_every_blob_is_listed_once(site: Site) -> None:
    files = offer(site).files
    assert len(distinct(files)) == len({file.digest for file in files})
    assert LAYOUT.hub == handover.HUB
