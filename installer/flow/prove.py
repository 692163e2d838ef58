"""Proof of serving: the service really answered, to the right key only; or the reason why it does not."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from installer.base.changes import Change, Handover, Restart
from installer.base.errors import Exit, InstallError
from installer.base.host import Host
from installer.base.language import mark, tr
from installer.base.report import Report
from installer.diagnosis import signatures
from installer.diagnosis.finding import FAULT
from installer.diagnosis.said import translated
from installer.families.known import refusal_in, root_line_in
from installer.flow.wanted import Wanted
from installer.model.model_about import read_directory
from installer.runtime.vllm_group import WAITING
from installer.runtime.vllm_member import BROKEN, ENDED, STARTING
from installer.spec.keys import generate
from installer.spec.settings import Settings
from installer.units.api import Answer, Api, NoAnswer, local_address
from installer.units.custody import Custody
from installer.units.gateway import certificate_of
from installer.units.graph import Member, units
from installer.units.holding import holding, without_count
from installer.units.journal import invocation, journal, last_entry
from installer.units.render import process_digest
from installer.units.systemd import running_process, unit_properties

POLL = 0.2
ANSWER_WITHIN = 120.0
KEYS_WITHIN = 10.0  # the guard answers this, while the engine is at its work
OTHERS_WITHIN = 900.0  # seconds: all hosts of a group change at the same time
BACK_WITHIN = 30.0  # seconds for those who go back to what was there: one of them may be what has failed
HELD_FOR = 7200  # seconds that a start may take at most: the unit's TimeoutStartSec=
FOLLOWED = ("ActiveState", "SubState", "StatusText", "NRestarts", "Result", "ReloadResult", "Job", "InvocationID")
# What is wrong with a service that answers these.
ANSWERS_WITHOUT_KEY = mark("a request without a key was answered with {status} instead of 401")
ANSWERS_WRONG_KEY = mark("a request with a wrong key was answered with {status} instead of 401")


class NotProved(InstallError):
    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint, Exit.NOT_PROVED)


class Apart(NotProved):
    """A host of a group runs as it should, and the others are not there.

    Whoever goes back to what was there leaves it at that: it serves as soon as they do.
    """


class Silent(NotProved):
    """There was no answer at all, which says nothing of what it would have been."""


@dataclass(frozen=True)
class Start:
    """What those need to know of a start who explain why it failed."""

    is_first: bool = False  # no service was there before it: no verb that changes one helps
    before: frozenset[str] = frozenset()  # the runs whose place it takes; what those said explains nothing
    # Of each unit that is handed over, which stays in the same run: the journal's last entry before that.
    since: Mapping[str, str] = field(default_factory=dict)
    is_way_back: bool = False  # to what was proved before


NOT_WATCHED = Start()  # one that was over, or well under way, when it was first looked at


def started_by(changes: Iterable[Change], host: Host, *, is_first: bool = False, is_way_back: bool = False) -> Start:
    """The start that these changes will make, seen before they are applied."""
    changes = tuple(changes)
    anew = [unit for change in changes if isinstance(change, Restart) for unit in (change.unit, *change.along)]
    runs = {invocation(host, unit) for unit in anew}
    since = {change.unit: last_entry(host, change.unit) for change in changes if isinstance(change, Handover)}
    return Start(is_first, frozenset(runs), since, is_way_back)


def serving(want: Wanted, host: Host, report: Report, start: Start = NOT_WATCHED) -> None:
    """Return when everything a client relies on was seen to hold, of every member and of what clients reach."""
    try:
        for member in units(want.layout, want.target):
            serves(want, member, host, report, start)
    except Apart as apart:
        if not start.is_way_back:
            raise
        report.warn(apart.message)


def serves(want: Wanted, member: Member, host: Host, report: Report, start: Start) -> None:
    wait_until_ready(member, host, report, start)
    server = Server(want, member, host)
    if member.name in start.since or not want.target.has_api:
        _check_process(server)
    if not want.target.has_api:
        return  # its head has answered
    _check_keys(server)
    _check_model(server)
    _check_answer(server)
    _check_chat(server, report)


def wait_until_ready(member: Member, host: Host, report: Report, start: Start = NOT_WATCHED) -> None:
    """Follow systemd's job, and the start after it while callers are held: nothing is asked before it is over.

    The watcher bounds both, as it ends a start that makes no progress.
    """
    restarts: int | None = None
    said = run = ""
    apart_since: float | None = None
    while True:
        now = unit_properties(host, member.name, *FOLLOWED)
        has_job, state = bool(now.get("Job")), now.get("ActiveState")
        is_apart = now["StatusText"].startswith((WAITING, BROKEN))
        apart_since = (apart_since or time.monotonic()) if is_apart else None
        if apart_since and time.monotonic() - apart_since > (BACK_WITHIN if start.is_way_back else OTHERS_WITHIN):
            why = tr("the other hosts have not come: {stage}", stage=translated(now["StatusText"]))
            raise Apart(why, _look(member))
        if not has_job and state == "active":
            _check_handed_over(member, now, host, start)
            held = holding(host, member)
            if held is None and not is_apart and now["StatusText"] not in (STARTING, ENDED):
                return
            if held is None:
                time.sleep(POLL)
                continue
            if held.longest > HELD_FOR:
                raise failure(member, host, tr("{unit} holds its callers and does not serve", unit=member.name), run)
        crashed = restarts is not None and int(now.get("NRestarts") or 0) > restarts
        if not crashed:  # else it is the next run already
            run = now.get("InvocationID", "")
        gone = not has_job and state not in ("active", "reloading")
        if gone or crashed or now["SubState"] == "auto-restart":
            result = now.get("Result", "unknown")
            what = tr("{unit} did not come up ({result})", unit=member.name, result=result)
            raise failure(member, host, what, run, start)
        restarts = int(now.get("NRestarts") or 0)
        if (stage := without_count(now["StatusText"])) and stage != said:
            said = stage
            report.note(translated(said))
        time.sleep(POLL)


def _check_handed_over(member: Member, now: Mapping[str, str], host: Host, start: Start) -> None:
    """A handover that failed leaves the service as it was, and so do we, who only have to say why."""
    result = now.get("ReloadResult", "")
    if member.name in start.since and result != "success":
        what = tr("the successor of {unit} did not come up ({result})", unit=member.name, result=result)
        raise failure(member, host, what, now.get("InvocationID", ""), start)


def failure(member: Member, host: Host, what: str, run: str, start: Start = NOT_WATCHED) -> NotProved:
    """NotProved with the line of that run's journal that says why, and what helps against it."""
    host.run("journalctl", "--sync", check=False)  # on a busy host the last words may still be on their way
    since = start.since.get(member.name, "")
    lines = journal(host, member.name, 400, run, since) if run not in start.before else []
    return reason_in(lines, what, _look(member), member.layout.service, is_first=start.is_first)


def _look(member: Member) -> str:
    return f"journalctl -u {member.name.removesuffix('.service')} -n 200"


def reason_in(
    lines: list[str], what: str, look: str, service: str = Settings.service, *, is_first: bool = False
) -> NotProved:
    """The same from the lines of a log; `look` is where more of it can be seen."""
    refusal = refusal_in(lines)
    if refusal and refusal.estimated_max:
        fits = refusal.estimated_max
        hint = tr(
            "ask for at most {fits}: deploy --context {fits}, or set-context {fits} on a service that exists", fits=fits
        )
        return NotProved(tr("asked {context}; this GPU fits {fits}", context=refusal.context, fits=fits), hint)
    known = [finding for finding in signatures.explain(lines, service, is_first=is_first) if finding.severity == FAULT]
    if known:
        return NotProved(tr("{what}: {why}", what=what, why=known[0].evidence), tr(" or ").join(known[0].commands))
    if root := root_line_in(lines):
        return NotProved(tr("{what}: {why}", what=what, why=root), look)
    if not lines:
        return NotProved(what, look)
    tail = "\n".join(f"    {line}" for line in lines[-8:])
    return NotProved(tr("{what}\nits last words:\n{tail}", what=what, tail=tail), look)


@dataclass(frozen=True)
class Server:
    """The service as it is asked; a key is sent to nobody but its own processes."""

    want: Wanted
    member: Member
    host: Host
    within: float = ANSWER_WITHIN

    def ask(self, method: str, path: str, key: str | None, body: dict[str, object] | None = None) -> Answer:
        custody = Custody(self.host, self.member.name, self.want.layout.user)
        certificate = certificate_of(self.host, self.member, self.want.target.settings)
        api = Api(
            local_address(self.member.host), self.member.port, key, self.within, custody, certificate, only_here=True
        )
        try:
            return api.ask(method, path, body)
        except NoAnswer as error:
            raise Silent(str(error), _look(self.member)) from None


def keys_in_force(want: Wanted, host: Host, accepted: str | None, doors: Iterable[Member] | None = None) -> None:
    """At every door the service refuses whom it should, and takes the probe key and the key that was just set."""
    if not want.target.has_api:
        return
    for member in doors or units(want.layout, want.target):
        server = Server(want, member, host, KEYS_WITHIN)
        _check_keys(server)
        for key in filter(None, (want.probe_key, accepted)):
            if (status := server.ask("GET", "/v1/models", key).status) not in (200, 403):
                said = tr("a request with a valid key was answered with {status} instead of 200", status=status)
                raise NotProved(said)


def _check_process(server: Server) -> None:
    """The process itself says from which unit it was started: to answer, the one before it would do."""
    process = running_process(server.host, server.member)
    if process is None or process.digest != process_digest(
        server.want.target, server.want.layout, server.member.number
    ):
        raise NotProved(tr("{unit} runs on as it was", unit=server.member.name), _look(server.member))


def _check_keys(server: Server) -> None:
    for key, otherwise in ((None, ANSWERS_WITHOUT_KEY), (generate("wrong"), ANSWERS_WRONG_KEY)):
        status = server.ask("GET", "/v1/models", key).status
        if status != 401:
            raise NotProved(tr(otherwise, status=status))


def _check_model(server: Server) -> None:
    want, name = server.want, server.want.target.model.id
    names = {name, *want.target.settings.served_model_name, *(each.model.id for each in want.target.adapters)}
    answer = server.ask("GET", "/v1/models", want.probe_key)
    if (status := answer.status) != 200:
        raise NotProved(tr("a request with the probe key was answered with {status} instead of 200", status=status))
    listed = answer.json().get("data")
    models = {m.get("id"): m for m in listed if isinstance(m, dict)} if isinstance(listed, list) else {}
    if names - models.keys():
        served = ", ".join(map(str, models)) or tr("no model")
        raise NotProved(tr("it serves {served} instead of {model}", served=served, model=", ".join(sorted(names))))
    asked, given = want.target.settings.max_model_len, models[name].get("max_model_len")
    if asked is not None and given != asked:
        raise NotProved(tr("its context is {given} instead of {asked}", given=given, asked=asked))


def _check_answer(server: Server) -> None:
    want = server.want
    body: dict[str, object] = {"model": want.target.model.id, "prompt": "Hi", "max_tokens": 1, "temperature": 0}
    plain = server.ask("POST", "/v1/completions", want.probe_key, body)
    choices = plain.json().get("choices")
    if (status := plain.status) != 200 or not choices:
        start = plain.body[:200]
        raise NotProved(tr("a one-token completion was answered with {status}: {body!r}", status=status, body=start))
    streamed = server.ask("POST", "/v1/completions", want.probe_key, {**body, "stream": True})
    events, status = list(_events(streamed.body)), streamed.status
    if status != 200 or len(events) < 2 or events[-1] != b"[DONE]":
        said = tr(
            "a streamed completion was answered with {status} and {events} events", status=status, events=len(events)
        )
        raise NotProved(said)


def _check_chat(server: Server, report: Report) -> None:
    """A template's own words count as well: a context that holds a completion may hold no chat."""
    want = server.want
    if not read_directory(server.host.at(want.target.model.path)).template:
        return
    body: dict[str, object] = {
        "model": want.target.model.id, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1,
    }  # fmt: skip
    answer = server.ask("POST", "/v1/chat/completions", want.probe_key, body)
    if answer.status == 200:
        return
    if "context length" in answer.words or answer.status >= 500:
        raise NotProved(
            tr("the shortest chat was answered with {status}: {words}", status=answer.status, words=answer.words),
            tr("give it a larger context: vllm-install set-context 1024 --service {name}", name=want.layout.service),
        )
    report.warn(  # of a model that is asked in another form, such as one that translates
        tr("a plain chat was answered with {status}: {words}", status=answer.status, words=answer.words)
    )


def _events(body: bytes) -> Iterator[bytes]:
    return (line[6:].strip() for line in body.splitlines() if line.startswith(b"data: "))
