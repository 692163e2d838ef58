"""What the hub says about a model: its commit, its files with sizes and checksums; and its refusals in plain words."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from installer.errors import Exit, InstallError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

COMMIT = re.compile(r"[0-9a-f]{40}")
DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
TIMEOUT = 30.0
BUSY_DELAYS = (0.5, 2.0)
LONGEST_WAIT = 300.0
AUTHORIZE = "run again with HF_TOKEN set (sudo --preserve-env=HF_TOKEN …)"
# What an engine reads besides the weights; everything else in a repository (pictures, papers, logs) stays there.
SMALL_FILES = {".json", ".jinja", ".txt", ".model", ".py", ".tiktoken", ".vocab", ".bpe", ".spm"}
PICKLES = {".bin", ".pt", ".pth", ".ckpt"}
OTHER_FORMATS = {"original", "onnx", "openvino", "coreml", "gguf", "metal", "checkpoints", "runs"}
HUB_TOKENIZERS = {"tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"}


class ModelError(InstallError):
    """The weights cannot be had or cannot be right."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint, Exit.MODEL)


@dataclass(frozen=True)
class ModelFile:
    """One file of a checkpoint; the digest is its sha256, or git's sha1 where the hub has no other."""

    name: str
    size: int
    digest: str
    cached: bool = False
    partial: int = 0


@dataclass(frozen=True)
class Origin:
    """Where a model comes from."""

    repo: str
    revision: str | None
    endpoint: str | None

    @property
    def server(self) -> str:
        """The hub's address, without a password that may be part of it."""
        from huggingface_hub import constants

        parts = urlsplit(self.endpoint or constants.ENDPOINT)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    @property
    def folder(self) -> str:
        """The hub cache's name for the repository."""
        return "models--" + self.repo.replace("/", "--")

    def url(self, commit: str, name: str) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.repo, name, revision=commit, endpoint=self.endpoint)


def listing(origin: Origin, revision: str | None) -> tuple[str, tuple[ModelFile, ...]]:
    """The commit that a revision stands for, and every file in it: one request."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=origin.endpoint)
    with translated(origin):
        info = _patiently(lambda: api.model_info(origin.repo, revision=revision, files_metadata=True, timeout=TIMEOUT))
        if info.gated:
            # The list of a gated model's files is public, the files are not: better to know before the plan.
            api.auth_check(origin.repo)
    commit, siblings = info.sha, info.siblings
    if not commit or not COMMIT.fullmatch(commit) or not siblings:
        raise not_a_hub(origin)
    files = []
    for entry in siblings:
        length, digest = (entry.lfs.size, entry.lfs.sha256) if entry.lfs else (entry.size, entry.blob_id)
        files.append(checked(ModelFile(entry.rfilename, -1 if length is None else length, digest or "")))
    return commit, tuple(files)


def _patiently(ask: Callable[[], ModelInfo]) -> ModelInfo:
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
    if value.strip().isdigit():
        return min(float(value), LONGEST_WAIT)
    try:
        moment = email.utils.parsedate_to_datetime(value).timestamp()
    except ValueError:
        return 0.0
    return min(max(moment - time.time(), 0.0), LONGEST_WAIT)


def checked(file: ModelFile) -> ModelFile:
    """The file, unless its name could leave the model's directory or its checksum is none."""
    if not is_inside(file.name):
        raise ModelError(
            f"the repository holds a file with the dangerous name {file.name!r}",
            "do not use this model; report it to the hub",
        )
    if not DIGEST.fullmatch(file.digest) or file.size < 0:
        raise ModelError(f"the hub gives no usable checksum for {file.name}", "try another mirror, or the hub itself")
    return file


def is_inside(name: str) -> bool:
    """Whether a relative name, joined to a directory, is sure to stay in it."""
    parts = name.split("/")
    if any(part in ("", ".", "..") or len(part.encode(errors="replace")) > 255 for part in parts):
        return False
    return "\\" not in name and name.isprintable()


def select(repo: str, files: Iterable[ModelFile]) -> tuple[ModelFile, ...]:
    """The files that vLLM loads. Of a checkpoint in several formats, one."""
    useful = [f for f in files if not _is_aside(f.name)]
    names = {f.name for f in useful}
    safetensors = {name for name in names if name.endswith(".safetensors") and "/" not in name}
    consolidated = {name for name in safetensors if name.startswith("consolidated")}
    # vLLM takes the consolidated form whenever it sees it, so exactly one form may be on disk.
    is_standard = bool(safetensors - consolidated) and "config.json" in names and bool(names & HUB_TOKENIZERS)
    weights = safetensors - consolidated if is_standard or not consolidated else consolidated
    if not weights:
        raise _unloadable(repo, names)
    if "config.json" not in names and not (consolidated and "params.json" in names):
        raise ModelError(f"{repo} has no config.json, so it is no complete model", "choose the full model's repository")
    other_index = ("pytorch", "consolidated" if weights.isdisjoint(consolidated) else "model.")
    chosen = [
        f
        for f in useful
        if f.name in weights
        or (is_standard and _is_module_weight(f.name))
        or (_is_small(f.name) and not (f.name.endswith(".index.json") and f.name.startswith(other_index)))
    ]
    _refuse_clashes(chosen)
    return tuple(sorted(chosen, key=lambda f: f.name))


def _is_aside(name: str) -> bool:
    parts = name.split("/")
    if any(part.startswith(".") for part in parts):
        return True
    return len(parts) > 1 and (parts[0].lower() in OTHER_FORMATS or parts[0].startswith("checkpoint-"))


def _is_small(name: str) -> bool:
    base = PurePosixPath(name).name
    return PurePosixPath(base).suffix.lower() in SMALL_FILES or base.startswith("tokenizer.model")


def _is_module_weight(name: str) -> bool:
    """Pooling and dense layers of embedding models: `2_Dense/model.safetensors`."""
    return re.fullmatch(r"\d+_\w+/[^/]+\.safetensors", name) is not None


def _refuse_clashes(files: Iterable[ModelFile]) -> None:
    names = {f.name for f in files}
    for name in names:
        for parent in PurePosixPath(name).parents:
            if str(parent) in names:
                raise ModelError(
                    f"the repository holds {str(parent)!r} both as a file and as a directory",
                    "do not use this model; report it to the hub",
                )


def _unloadable(repo: str, names: set[str]) -> ModelError:
    suffixes = {PurePosixPath(name).suffix.lower() for name in names}
    if suffixes & PICKLES:
        return ModelError(
            f"{repo} has its weights only as Python pickles, which can run any code when they are loaded",
            "choose a repository with .safetensors files",
        )
    if ".gguf" in suffixes:
        return ModelError(
            f"{repo} has its weights only as GGUF, which this engine does not load",
            "choose the original model's repository, with .safetensors files",
        )
    return ModelError(f"{repo} has no weights that vLLM can load (no .safetensors file)", "check the model's name")


@contextmanager
def translated(origin: Origin) -> Iterator[None]:
    """Turn what the hub client raises into a ModelError that says what to do."""
    try:
        yield
    except InstallError:
        raise
    except Exception as error:
        fault = explain(error, origin)
        if fault is None:
            raise
        raise fault from None


def explain(error: Exception, origin: Origin) -> ModelError | None:
    """The fault that a foreign exception amounts to, or None where it is a bug."""
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx

    page = f"{origin.server}/{origin.repo}"
    if isinstance(error, errors.GatedRepoError):
        return _no_access(origin)
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelError(
            f"{origin.repo} has no revision {origin.revision!r}",
            f"choose a branch, tag or commit shown at {page}/commits/main, or leave --revision out",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return _unknown(origin)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return ModelError(f"{origin.repo} must be downloaded, but HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE")
    if isinstance(error, errors.EntryNotFoundError):
        return ModelError(
            f"{origin.server} lists a file of {origin.repo} that it does not have",
            "try again later, or use another source (--hf-endpoint)",
        )
    if isinstance(error, errors.HfHubHTTPError):
        return _bad_status(error.response.status_code, origin)
    if isinstance(error, httpx.TransportError):
        return no_answer(origin, error)
    if isinstance(error, errors.HFValidationError):
        return ModelError(f"{origin.repo!r} cannot be a model on the hub", "a hub id looks like Qwen/Qwen3-8B")
    if isinstance(error, (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError, AttributeError)):
        return not_a_hub(origin)
    return None


def no_answer(origin: Origin, error: Exception) -> ModelError:
    return ModelError(
        f"no answer from {origin.server}: {error or type(error).__name__}",
        "check the network and HTTPS_PROXY; or name a mirror with --hf-endpoint, or a local directory with --model",
    )


def not_a_hub(origin: Origin) -> ModelError:
    return ModelError(
        f"{origin.server} does not answer as a model hub does",
        "check --hf-endpoint (HF_ENDPOINT); leave it out to use the public hub",
    )


def _unknown(origin: Origin) -> ModelError:
    return ModelError(
        f"{origin.server} has no model {origin.repo}, or it is private",
        f"check the name at {origin.server}/{origin.repo}; for a private model {AUTHORIZE}",
    )


def _bad_status(status: int, origin: Origin) -> ModelError:
    from huggingface_hub import get_token

    if status == 401 and not get_token():
        return _unknown(origin)  # what the hub says to strangers about a name that it does not know
    if status in (401, 403):
        return _no_access(origin)
    if status == 404:
        return ModelError(
            f"{origin.server} has no model {origin.repo}, or is no model hub",
            "check --model, and --hf-endpoint (HF_ENDPOINT) where it is set",
        )
    if status == 429:
        return ModelError(
            f"{origin.server} refuses more requests for now (429)",
            f"run the command again later, it continues where it stopped; a token raises the limits: {AUTHORIZE}",
        )
    return ModelError(
        f"{origin.server} answered with status {status}",
        "run the command again later: it continues where it stopped",
    )


def _no_access(origin: Origin) -> ModelError:
    from huggingface_hub import get_token

    page = f"{origin.server}/{origin.repo}"
    if get_token():
        return ModelError(
            f"the token in use gives no access to {origin.repo}",
            f"accept the model's terms at {page} with the token's account, and check that the token may read it",
        )
    return ModelError(
        f"{origin.repo} is given out only to those who accepted its terms",
        f"accept them at {page}, then {AUTHORIZE}",
    )
