"""Tells somebody: hands a message to a command, to a URL, or to both. Run by a user who can do nothing else.

    vllm_notify.py    the message, and to whom it goes, as JSON in the credential `message`

Exit status 0: it was taken; 3: one of two ways failed; 1: nobody took it. Nothing waits for ever: neither for a server
that never answers nor for one that answers a byte at a time. Stdlib only.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import IO, TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING or __package__:
    from installer.runtime.vllm_text import one_line
else:
    from vllm_text import one_line

WITHIN = 30  # seconds for each of the two
LONGEST = 2900  # characters of a text for Slack, which cuts those that are longer
LATE = "it took longer than {seconds} s"
TAKEN, PARTLY, NOT_TAKEN = 0, 3, 1


class NotTaken(Exception):
    """Why it could not be told; says nothing of the URL but its host, for the rest may be a secret."""


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """What is told goes to whom the admin named, and to nobody that one names."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> None:
        return None


def tell(task: Mapping[str, Any]) -> int:
    """All ways are tried; what was taken by nobody is tried again later."""
    ways: list[tuple[str, Callable[[], None]]] = []
    if task["command"]:
        ways.append(("command", lambda: run(task["command"], task["message"])))
    if task["url"]:
        ways.append(("URL", lambda: post(task["url"], task["form"], task["message"])))
    failed = [name for name, way in ways if not is_taken(name, way)]
    if not failed:
        return TAKEN
    return PARTLY if len(failed) < len(ways) else NOT_TAKEN


def is_taken(name: str, way: Callable[[], None]) -> bool:
    try:
        in_time(way)
    except (NotTaken, OSError, ValueError, http.client.HTTPException) as error:
        print(one_line(f"the {name} did not take the message: {error}"), file=sys.stderr, flush=True)
        return False
    return True


def in_time(way: Callable[[], None]) -> None:
    """All of it, and not only each of its waits."""
    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(WITHIN)
    try:
        way()
    finally:
        signal.alarm(0)


def give_up(*_: object) -> NoReturn:
    raise NotTaken(LATE.format(seconds=WITHIN))


def run(command: list[str], message: Mapping[str, Any]) -> None:
    """The words as they were typed; no shell reads them."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as process:
        try:
            process.communicate(json.dumps(message).encode() + b"\n")
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode:
        raise NotTaken(f"exit status {process.returncode}")


def post(url: str, form: str, message: Mapping[str, Any]) -> None:
    if not url.startswith(("http://", "https://")):
        raise NotTaken("it is no URL of http or https")
    body = json.dumps({"text": for_slack(message)} if form == "slack" else message).encode()
    headers = {"Content-Type": "application/json", "User-Agent": "vllm-install"}
    request = urllib.request.Request(url, body, headers, method="POST")
    try:
        with urllib.request.build_opener(NoRedirect).open(request, timeout=WITHIN) as answer:
            answer.read(1)
    except urllib.error.HTTPError as error:
        redirects = "; redirects are not followed" if 300 <= error.code < 400 else ""
        raise NotTaken(f"{request.host} answers {error.code}{redirects}") from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, NotTaken):
            raise error.reason from None
        raise NotTaken(f"{request.host}: {error.reason}") from None


def for_slack(message: Mapping[str, Any]) -> str:
    """One text; what Slack would take for a link or a name is shown as it is."""
    lines = [f"*{escape(message['summary'])}*"]
    for finding in message["findings"]:
        lines.append(escape(f"{finding['severity']}: {finding['cause']} [{finding['id']}]"))
        lines += [f"    `{escape(command)}`" for command in finding["commands"][:1]]
    return "\n".join(lines)[:LONGEST]


def escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def main() -> NoReturn:
    with open(os.path.join(os.environ["CREDENTIALS_DIRECTORY"], "message")) as file:
        sys.exit(tell(json.load(file)))


if __name__ == "__main__":
    main()
