"""ModelScope's HTTP API, as far as a download needs it: the files of a commit with their checksums, and their bytes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from urllib.parse import quote, urlencode

from installer.language import tr
from installer.weights.hub import COMMIT, TIMEOUT, ModelError, ModelFile, NotHere, Origin, checked, not_a_hub

ENDPOINT = "https://www.modelscope.cn"
BRANCH = "master"
# The listing has no pages: it ends without a word after this many entries.
LONGEST_LISTING = 3000
TOKEN = "MODELSCOPE_API_TOKEN"  # noqa: S105 the name of a variable


def url(origin: Origin, commit: str, name: str) -> str:
    query = urlencode({"Revision": commit, "FilePath": name})
    return f"{_model(origin)}/repo?{query}"


def headers() -> dict[str, str]:
    """The token goes to ModelScope alone: a redirect to another host leaves both headers behind."""
    token = os.environ.get(TOKEN)
    return {"authorization": f"Bearer {token}", "cookie": f"m_session_id={token}"} if token else {}


def listing(origin: Origin, revision: str | None) -> tuple[str, tuple[ModelFile, ...]]:
    """The commit that a revision stands for, and every file in it.

    A listing names its commit only by the first digits. The files say which commits touched them last, so that one of
    these is meant, and the listing of that one must be the same.
    """
    entries, begin = _entries(origin, revision or BRANCH)
    files = _files(entries)
    if revision and COMMIT.fullmatch(revision):
        return revision, files
    newest_first = sorted(entries, key=lambda entry: -_number(entry.get("CommittedDate")))
    commits = dict.fromkeys(str(entry.get("Revision")) for entry in newest_first)
    likely = sorted(filter(COMMIT.fullmatch, commits), key=lambda commit: not (begin and commit.startswith(begin)))
    for commit in likely[:2]:
        if _files(_entries(origin, commit)[0]) == files:
            return commit, files
    raise ModelError(
        tr(
            "{server} does not say which commit {revision} of {repo} is",
            server=origin.server,
            revision=revision or BRANCH,
            repo=origin.repo,
        ),
        tr("name the commit with --revision"),
    )


def _entries(origin: Origin, revision: str) -> tuple[list[Mapping[str, object]], str]:
    """The entries of a listing that are files, and the beginning of the id of its newest commit."""
    answer = _ask(origin, f"{_model(origin)}/repo/files?{urlencode({'Revision': revision, 'Recursive': 'True'})}")
    data = answer.get("Data")
    if not isinstance(data, dict):
        raise not_a_hub(origin)
    listed = data.get("Files")
    if not isinstance(listed, list) or not listed:  # what it says about a revision that it does not know
        raise NotHere(
            tr(
                "{server} has no revision {revision!r} of {repo}",
                server=origin.server,
                revision=revision,
                repo=origin.repo,
            ),
            tr("choose a branch, tag or commit shown at {page}", page=f"{origin.server}/models/{origin.repo}/files"),
        )
    if len(listed) >= LONGEST_LISTING:
        raise ModelError(
            tr("{server} does not list all files of {repo}", server=origin.server, repo=origin.repo),
            tr("use another source (--model-sources hub)"),
        )
    latest = data.get("LatestCommitter")
    begin = str(latest.get("Id") or latest.get("ShortId") or "") if isinstance(latest, dict) else ""
    return [entry for entry in listed if isinstance(entry, dict) and entry.get("Type") == "blob"], begin


def _files(entries: list[Mapping[str, object]]) -> tuple[ModelFile, ...]:
    """Every file has its sha256 here, small ones too."""
    found = (
        checked(ModelFile(str(e.get("Path")), _number(e.get("Size"), -1), str(e.get("Sha256") or "").lower()))
        for e in entries
    )
    return tuple(sorted(found, key=lambda file: file.name))


def _ask(origin: Origin, address: str) -> Mapping[str, object]:
    from installer.weights import hub

    with hub.translated(origin):
        answer = hub.get(origin, address, TIMEOUT)
        content = answer.json()
    if not isinstance(content, dict) or content.get("Success") is False:
        raise not_a_hub(origin)
    return content


def _model(origin: Origin) -> str:
    return f"{origin.server}/api/v1/models/{quote(origin.repo)}"


def _number(value: object, otherwise: int = 0) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else otherwise
