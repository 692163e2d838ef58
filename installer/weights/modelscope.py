"""ModelScope's HTTP API, as far as a download needs it: the files of a commit with their checksums, and their bytes."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlencode

from installer.base.language import tr
from installer.spec.model import COMMIT, ModelError, ModelFile, NotHere, Origin
from installer.weights.addresses import modelscope_page, server_of
from installer.weights.hub import TIMEOUT, checked, not_a_hub

BRANCH = "master"
# The listing has no pages: it ends without a word after this many entries.
LONGEST_LISTING = 3000


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
            server=server_of(origin),
            revision=revision or BRANCH,
            repo=origin.repo,
        ),
        tr("name the commit with --revision"),
    )


def _entries(origin: Origin, revision: str) -> tuple[list[Mapping[str, object]], str]:
    """The entries of a listing that are files, and the beginning of the id of its newest commit."""
    answer = _ask(
        origin, f"{modelscope_page(origin)}/repo/files?{urlencode({'Revision': revision, 'Recursive': 'True'})}"
    )
    data = answer.get("Data")
    if not isinstance(data, dict):
        raise not_a_hub(origin)
    listed = data.get("Files")
    if not isinstance(listed, list) or not listed:  # what it says about a revision that it does not know
        raise NotHere(
            tr(
                "{server} has no revision {revision!r} of {repo}",
                server=server_of(origin),
                revision=revision,
                repo=origin.repo,
            ),
            tr(
                "choose a branch, tag or commit shown at {page}", page=f"{server_of(origin)}/models/{origin.repo}/files"
            ),
        )
    if len(listed) >= LONGEST_LISTING:
        raise ModelError(
            tr("{server} does not list all files of {repo}", server=server_of(origin), repo=origin.repo),
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


def _number(value: object, otherwise: int = 0) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else otherwise
