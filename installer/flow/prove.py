"""Proof of serving: the service really answered, to the right key only; or the reason why it does not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from installer.base.errors import Exit, InstallError
from installer.base.host import Host
from installer.base.language import mark, tr
from installer.base.layout import Layout
from installer.base.report import Report
from installer.diagnosis import signatures
from installer.diagnosis.finding import FAULT
from installer.diagnosis.said import translated
from installer.families.vllm.log import read_refusal, root_line
from installer.flow.steps import Wanted
from installer.model.model_about import read_directory
from installer.spec.keys import generate
from installer.spec.settings import Settings
from installer.units.api import Answer, Api, NoAnswer, local_address
from installer.units.custody import Custody
from installer.units.journal import journal
from installer.units.systemd import unit_properties

POLL = 0.2
ANSWER_WITHIN = 120.0
# What is wrong with a service that answers these.
ANSWERS_WITHOUT_KEY = mark("a request without a key was answered with {status} instead of 401")
ANSWERS_WRONG_KEY = mark("a request with a wrong key was answered with {status} instead of 401")


class NotProved(InstallError):
    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint, Exit.NOT_PROVED)


def serving(want: Wanted, host: Host, report: Report) -> None:
    """Return when everything a client relies on was seen to hold; raise NotProved otherwise."""
    wait_until_ready(want.layout, host, report)
    server = Server(want, host)
    _check_keys(server)
    _check_model(server)
    _check_answer(server)
    _check_chat(server, report)


def wait_until_ready(layout: Layout, host: Host, report: Report) -> None:
    """Follow systemd's job. It is bounded by the watcher, which ends a start that makes no progress."""
    restarts: int | None = None
    said = ""
    while True:
        now = unit_properties(
            host, layout.unit_name, "ActiveState", "SubState", "StatusText", "NRestarts", "Result", "Job"
        )
        if not now.get("Job") and now.get("ActiveState") == "active":
            return
        crashed = restarts is not None and int(now.get("NRestarts") or 0) > restarts
        if not now.get("Job") or crashed or now["SubState"] == "auto-restart":
            result = now.get("Result", "unknown")
            what = tr("{unit} did not come up ({result})", unit=layout.unit_name, result=result)
            raise failure(layout, host, what)
        restarts = int(now.get("NRestarts") or 0)
        if now["StatusText"] and now["StatusText"] != said:
            said = now["StatusText"]
            report.note(translated(said))
        time.sleep(POLL)


def failure(layout: Layout, host: Host, what: str) -> NotProved:
    """NotProved with the line of the journal that says why, and what helps against it."""
    host.run("journalctl", "--sync", check=False)  # on a busy host the last words may still be on their way
    return explain(journal(layout, host, 400), what, f"journalctl -u {layout.service} -n 200", layout.service)


def explain(lines: list[str], what: str, look: str, service: str = Settings.service) -> NotProved:
    """The same from the lines of a log; `look` is where more of it can be seen."""
    refusal = read_refusal(lines)
    if refusal and refusal.estimated_max:
        fits = refusal.estimated_max
        hint = tr(
            "ask for at most {fits}: deploy --context {fits}, or set-context {fits} on a service that exists", fits=fits
        )
        return NotProved(tr("asked {context}; this GPU fits {fits}", context=refusal.context, fits=fits), hint)
    known = [finding for finding in signatures.explain(lines, service) if finding.severity == FAULT]
    if known:
        return NotProved(tr("{what}: {why}", what=what, why=known[0].evidence), tr(" or ").join(known[0].commands))
    if root := root_line(lines):
        return NotProved(tr("{what}: {why}", what=what, why=root), look)
    tail = "\n".join(f"    {line}" for line in lines[-8:])
    return NotProved(tr("{what}\nits last words:\n{tail}", what=what, tail=tail), look)


@dataclass(frozen=True)
class Server:
    """The service as it is asked; a key is sent to nobody but its own processes."""

    want: Wanted
    host: Host

    def ask(self, method: str, path: str, key: str | None, body: dict[str, object] | None = None) -> Answer:
        settings, layout = self.want.target.settings, self.want.layout
        custody = Custody(self.host, layout.unit_name, layout.user)
        api = Api(local_address(settings.host), settings.port, key, ANSWER_WITHIN, custody)
        try:
            return api.ask(method, path, body)
        except NoAnswer as error:
            raise NotProved(str(error), f"journalctl -u {layout.service} -n 200") from None


def keys_in_force(want: Wanted, host: Host, accepted: str | None) -> None:
    """The service refuses whom it should, and takes the probe key and the key that was just set."""
    server = Server(want, host)
    _check_keys(server)
    for key in filter(None, (want.probe_key, accepted)):
        status = server.ask("GET", "/v1/models", key).status
        if status not in (200, 403):
            raise NotProved(tr("a request with a valid key was answered with {status} instead of 200", status=status))


def _check_keys(server: Server) -> None:
    for key, otherwise in ((None, ANSWERS_WITHOUT_KEY), (generate("wrong"), ANSWERS_WRONG_KEY)):
        status = server.ask("GET", "/v1/models", key).status
        if status != 401:
            raise NotProved(tr(otherwise, status=status))


def _check_model(server: Server) -> None:
    want = server.want
    answer = server.ask("GET", "/v1/models", want.probe_key)
    if answer.status != 200:
        raise NotProved(
            tr("a request with the probe key was answered with {status} instead of 200", status=answer.status)
        )
    listed = answer.json().get("data")
    models = {m.get("id"): m for m in listed if isinstance(m, dict)} if isinstance(listed, list) else {}
    model = models.get(want.target.model.id)
    if model is None:
        raise NotProved(
            tr(
                "it serves {served} instead of {model}",
                served=", ".join(map(str, models)) or tr("no model"),
                model=want.target.model.id,
            )
        )
    asked, given = want.target.settings.max_model_len, model.get("max_model_len")
    if asked is not None and given != asked:
        raise NotProved(tr("its context is {given} instead of {asked}", given=given, asked=asked))


def _check_answer(server: Server) -> None:
    want = server.want
    body: dict[str, object] = {
        "model": want.target.model.id,
        "prompt": "Hi",
        "max_tokens": 1,
        "temperature": 0,
    }
    plain = server.ask("POST", "/v1/completions", want.probe_key, body)
    choices = plain.json().get("choices")
    if plain.status != 200 or not choices:
        raise NotProved(
            tr(
                "a one-token completion was answered with {status}: {body!r}",
                status=plain.status,
                body=plain.body[:200],
            )
        )
    streamed = server.ask("POST", "/v1/completions", want.probe_key, {**body, "stream": True})
    events = list(_events(streamed.body))
    if streamed.status != 200 or len(events) < 2 or events[-1] != b"[DONE]":
        raise NotProved(
            tr(
                "a streamed completion was answered with {status} and {events} events",
                status=streamed.status,
                events=len(events),
            )
        )


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
