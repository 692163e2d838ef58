"""What the hub says about a model: its commit, its files with sizes and checksums; and its refusals in plain words."""

from __future__ import annotations

import email.utils
import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from installer.base.errors import InstallError, Interrupted
from installer.base.language import mark, tr
from installer.spec.model import COMMIT, DIGEST, ModelError, ModelFile, NoAccess, NotHere, Origin, is_inside
from installer.weights.addresses import headers_of, server_of, token_of

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling
    from huggingface_hub.utils import httpx

T = TypeVar("T")

TIMEOUT = 30.0
BUSY_DELAYS = (0.5, 2.0)
LONGEST_WAIT = 300.0
LARGEST = 1 << 50  # bytes of a file
AUTHORIZE = mark("run again with HF_TOKEN set (sudo --preserve-env=HF_TOKEN …) or with --hf-token-file FILE")


def listing(origin: Origin, revision: str | None) -> tuple[str, tuple[ModelFile, ...]]:
    """The commit that a revision stands for, and every file in it: one request."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=origin.endpoint, token=token_of(origin) or False)
    with translated(origin):
        info = patiently(lambda: api.model_info(origin.repo, revision=revision, files_metadata=True, timeout=TIMEOUT))
        if info.gated:
            # The list of a gated model's files is public, the files are not: better to know before the plan.
            api.auth_check(origin.repo)
        # Within: the client hands on what it was sent, of whatever type.
        commit, siblings = info.sha, info.siblings
        if not commit or not COMMIT.fullmatch(commit) or not siblings:
            raise not_a_hub(origin)
        files = tuple(_file(origin, entry) for entry in siblings)
    if revision and COMMIT.fullmatch(revision) and commit != revision:
        raise ModelError(
            tr(
                "{server} answers with the commit {commit} where {revision} was asked for",
                server=server_of(origin),
                commit=commit,
                revision=revision,
            ),
            tr("use another source (--hf-endpoint, --model-sources)"),
        )
    return commit, files


def _file(origin: Origin, entry: RepoSibling) -> ModelFile:
    if not entry.lfs:
        return checked(ModelFile(entry.rfilename, -1 if entry.size is None else entry.size, entry.blob_id or ""))
    file = checked(ModelFile(entry.rfilename, entry.lfs.size, entry.lfs.sha256))
    # What git holds in the file's place, and what the commit therefore stands for.
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{file.digest}\nsize {file.size}\n".encode()
    if len(pointer) == entry.lfs.pointer_size and entry.blob_id not in (None, git_digest(pointer)):
        raise ModelError(
            tr(
                "{server} contradicts itself: the checksum of {file} is not the one that its commit holds",
                server=server_of(origin),
                file=file.name,
            ),
            tr("use another source (--hf-endpoint, --model-sources)"),
        )
    return file


def git_digest(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324 git's own


def get(origin: Origin, address: str, timeout: float) -> httpx.Response:
    """A request to the source, its refusals raised; for use within `translated`."""
    from huggingface_hub.utils import get_session, hf_raise_for_status

    def ask() -> httpx.Response:
        response = get_session().get(address, headers=headers_of(origin), timeout=timeout)
        hf_raise_for_status(response)
        return response

    return patiently(ask)


def patiently(ask: Callable[[], T]) -> T:
    """Ask again where the hub says that it is only busy."""
    from huggingface_hub.errors import HfHubHTTPError

    for delay in BUSY_DELAYS:
        try:
            return ask()
        except HfHubHTTPError as error:
            if not is_passing(error.response.status_code):
                raise
            time.sleep(max(delay, retry_after(error.response.headers.get("retry-after"))))
    return ask()


def is_passing(status: int) -> bool:
    """Whether a refusal may be over a moment later."""
    return status in (408, 429) or status >= 500


def retry_after(value: str | None) -> float:
    """Seconds that a server asks to wait: a number, or a date."""
    if not value:
        return 0.0
    try:
        if value.strip().isdecimal():
            return min(float(value), LONGEST_WAIT)
        moment = email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError):
        return 0.0
    return min(max(moment - time.time(), 0.0), LONGEST_WAIT)


def checked(file: ModelFile) -> ModelFile:
    """The file, unless its name could leave the model's directory or its checksum is none."""
    if not is_inside(file.name):
        raise ModelError(
            tr("the repository holds a file with the dangerous name {file!r}", file=file.name),
            tr("do not use this model; report it to the hub"),
        )
    if not DIGEST.fullmatch(file.digest) or type(file.size) is not int or not 0 <= file.size <= LARGEST:
        raise ModelError(
            tr("the hub gives no usable checksum for {file}", file=file.name),
            tr("try another mirror, or the hub itself"),
        )
    return file


@contextmanager
def translated(origin: Origin) -> Iterator[None]:
    """Turn what the hub client raises into a ModelError that says what to do."""
    try:
        yield
    except (InstallError, Interrupted):
        raise
    except Exception as error:
        fault = fault_of(error, origin)
        if fault is None:
            raise
        raise fault from None


def fault_of(error: Exception, origin: Origin) -> ModelError | None:
    """The fault that a foreign exception amounts to, or None where it is a bug."""
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx

    page = f"{server_of(origin)}/{origin.repo}"
    if isinstance(error, errors.GatedRepoError):
        return _no_access(origin)
    if isinstance(error, errors.RevisionNotFoundError):
        return NotHere(
            tr("{repo} has no revision {revision!r}", repo=origin.repo, revision=origin.revision),
            tr("choose a branch, tag or commit shown at {page}/commits/main, or leave --revision out", page=page),
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return _unknown(origin)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return ModelError(
            tr("{repo} must be downloaded, but HF_HUB_OFFLINE is set", repo=origin.repo), tr("unset HF_HUB_OFFLINE")
        )
    if isinstance(error, errors.EntryNotFoundError):
        return NotHere(
            tr("{server} lists a file of {repo} that it does not have", server=server_of(origin), repo=origin.repo),
            tr("try again later, or use another source (--hf-endpoint)"),
        )
    if isinstance(error, errors.HfHubHTTPError):
        return _bad_status(error.response.status_code, origin)
    if isinstance(error, httpx.TransportError):
        return no_answer(origin, error)
    if isinstance(error, errors.HFValidationError):
        return ModelError(
            tr("{repo!r} cannot be a model on the hub", repo=origin.repo), tr("a hub id looks like Qwen/Qwen3-8B")
        )
    # What is no answer of a hub breaks the client's own reading of it, in any way.
    broken = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
    if isinstance(error, (httpx.HTTPError, httpx.InvalidURL, *broken)):
        return not_a_hub(origin)
    return None


def no_answer(origin: Origin, error: Exception) -> NotHere:
    return NotHere(
        tr("no answer from {server}: {reason}", server=server_of(origin), reason=str(error) or type(error).__name__),
        tr(
            "check the network and HTTPS_PROXY; or name another source with --hf-endpoint or --model-sources, "
            "or a local directory with --model"
        ),
    )


def not_a_hub(origin: Origin) -> NotHere:
    return NotHere(
        tr("{server} does not answer as a model hub does", server=server_of(origin)),
        tr("check --hf-endpoint (HF_ENDPOINT); leave it out to use the public hub"),
    )


def _unknown(origin: Origin) -> NotHere:
    return NotHere(
        tr("{server} has no model {repo}, or it is private", server=server_of(origin), repo=origin.repo),
        tr(
            "check the name at {page}; for a private model {authorize}",
            page=f"{server_of(origin)}/{origin.repo}",
            authorize=tr(AUTHORIZE),
        ),
    )


def _bad_status(status: int, origin: Origin) -> ModelError:
    if status == 401 and not token_of(origin):
        return _unknown(origin)  # what the hub says to strangers about a name that it does not know
    if status in (401, 403):
        return _no_access(origin)
    if status == 404:
        return NotHere(
            tr("{server} has no model {repo}, or is no model hub", server=server_of(origin), repo=origin.repo),
            tr("check --model, and --hf-endpoint (HF_ENDPOINT) where it is set"),
        )
    if status == 429:
        return NotHere(
            tr("{server} refuses more requests for now (429)", server=server_of(origin)),
            tr(
                "run the command again later, it continues where it stopped; a token raises the limits: {authorize}",
                authorize=tr(AUTHORIZE),
            ),
        )
    return NotHere(
        tr("{server} answered with status {status}", server=server_of(origin), status=status),
        tr("run the command again later: it continues where it stopped"),
    )


def _no_access(origin: Origin) -> NoAccess:
    page = f"{server_of(origin)}/{origin.repo}"
    if token_of(origin):
        return NoAccess(
            tr("the token in use gives no access to {repo}", repo=origin.repo),
            tr(
                "accept the model's terms at {page} with the token's account, and check that the token may read it",
                page=page,
            ),
        )
    return NoAccess(
        tr("{repo} is given out only to those who accepted its terms", repo=origin.repo),
        tr("accept them at {page}, then {authorize}", page=page, authorize=tr(AUTHORIZE)),
    )
