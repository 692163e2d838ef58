"""Where logs go: how each of the servers that take them wants to be told, and what its answers mean."""

from __future__ import annotations

import hashlib
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from installer.runtime.vllm_notify import WITHIN, NoRedirect, NotTaken, in_time

LONGEST = 4 << 20  # bytes of an answer that is looked at
INDEX = "vllm-install"
# Of an entry that a server will never take the others are sent without it.
BAD_ENTRY = (400, 413, 422)
Entry = Mapping[str, str]


class BadEntry(NotTaken):
    """It would not take this at any time."""


@dataclass(frozen=True)
class Sink:
    path: str  # below the URL that was given
    kind: str  # of the body
    body: Callable[[list[Entry]], bytes]
    check: Callable[[bytes], None]


def deliver(to: str, url: str, authorization: str, entries: list[Entry]) -> None:
    """All of them, or NotTaken, within a time that no server can prolong."""
    in_time(lambda: _post(SINKS[to], url, authorization, entries))


def _post(sink: Sink, url: str, authorization: str, entries: list[Entry]) -> None:
    headers = {"Content-Type": sink.kind, "User-Agent": "vllm-install"}
    headers |= {"Authorization": authorization} if authorization else {}
    request = urllib.request.Request(url.rstrip("/") + sink.path, sink.body(entries), headers, method="POST")  # noqa: S310
    try:
        with urllib.request.build_opener(NoRedirect).open(request, timeout=WITHIN) as answer:
            sink.check(answer.read(LONGEST))
    except urllib.error.HTTPError as error:
        kind = BadEntry if error.code in BAD_ENTRY else NotTaken
        raise kind(f"{request.host} answers {error.code}") from None
    except urllib.error.URLError as error:
        raise NotTaken(f"{request.host}: {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        raise NotTaken(f"{request.host}: {error}") from None
    except (ValueError, TypeError, LookupError, RecursionError):
        raise NotTaken(f"{request.host} answers what no such server would") from None


def nanoseconds(entry: Entry) -> str:
    return f"{entry['__REALTIME_TIMESTAMP']}000"


# Elasticsearch, OpenSearch


def bulk(entries: list[Entry]) -> bytes:
    """With an id of its own each, so that what is sent twice is there once."""
    lines = []
    for entry in entries:
        identity = hashlib.sha256(entry["__CURSOR"].encode()).hexdigest()[:32]
        lines.append(json.dumps({"create": {"_index": INDEX, "_id": identity}}))
        milliseconds = int(entry["__REALTIME_TIMESTAMP"]) // 1000
        lines.append(json.dumps({"@timestamp": milliseconds, **_fields(entry)}))
    return "".join(f"{line}\n" for line in lines).encode()


def _fields(entry: Entry) -> dict[str, str]:
    """Without what only says where the entry stands in this host's journal; _index and its like are the server's."""
    return {name.strip("_").lower(): value for name, value in entry.items() if not name.startswith("__")}


def check_bulk(answer: bytes) -> None:
    """Each has a status of its own; 409: it is there already."""
    said = json.loads(answer)
    if said["errors"] is False:
        return
    status = {item["create"]["status"] for item in said["items"]} - {200, 201, 409}
    if status:
        kind = BadEntry if status <= {*BAD_ENTRY} else NotTaken
        raise kind(f"of the entries some were refused with {', '.join(sorted(map(str, status)))}")


# Loki


def streams(entries: list[Entry]) -> bytes:
    """Few labels, by which Loki keeps its streams apart; all fields stand in the line, as JSON."""
    found: dict[tuple[str, str], list[list[str]]] = {}
    for entry in entries:
        unit = entry.get("UNIT") or entry.get("OBJECT_SYSTEMD_UNIT") or entry.get("_SYSTEMD_UNIT", "")
        values = found.setdefault((entry.get("_HOSTNAME", ""), unit), [])
        values.append([nanoseconds(entry), json.dumps(_fields(entry))])
    made = [
        {"stream": {"job": INDEX, "host": host, "unit": unit}, "values": values}
        for (host, unit), values in found.items()
    ]
    return json.dumps({"streams": made}).encode()


# systemd-journal-remote


def export(entries: list[Entry]) -> bytes:
    """The journal's own form: a field on a line, one that holds a line break by its length."""
    return b"".join(b"".join(_exported(entry)) + b"\n" for entry in entries)


def _exported(entry: Entry) -> Iterable[bytes]:
    for name, value in entry.items():
        data = value.encode(errors="replace")
        if b"\n" in data:
            yield name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
        else:
            yield name.encode() + b"=" + data + b"\n"


def taken(answer: bytes) -> None:
    """The status said all."""


SINKS = {
    "journal-remote": Sink("/upload", "application/vnd.fdo.journal", export, taken),
    "elasticsearch": Sink("/_bulk?filter_path=errors,items.create.status", "application/x-ndjson", bulk, check_bulk),
    "loki": Sink("/loki/api/v1/push", "application/json", streams, taken),
}
