"""Where a source of models is asked and with what: addresses, tokens and headers of both providers."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

from installer.base.language import tr
from installer.spec.model import ModelError, Origin

# Or the hub client would ask the public hub for a list of coding tools before its first request, whatever mirror was
# chosen. It reads this when it is imported, which nothing of ours does before this module.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

MODELSCOPE = "https://www.modelscope.cn"
MODELSCOPE_TOKEN = "MODELSCOPE_API_TOKEN"  # noqa: S105 the name of a variable


def server_of(origin: Origin) -> str:
    """The source's address, without a password that may be part of it."""
    from huggingface_hub import constants

    own = MODELSCOPE if origin.provider == "modelscope" else constants.ENDPOINT
    parts = urlsplit(origin.endpoint or own)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def modelscope_page(origin: Origin) -> str:
    return f"{server_of(origin)}/api/v1/models/{quote(origin.repo)}"


def url_of(origin: Origin, commit: str, name: str) -> str:
    from huggingface_hub import hf_hub_url

    if origin.provider == "modelscope":
        return f"{modelscope_page(origin)}/repo?{urlencode({'Revision': commit, 'FilePath': name})}"
    return hf_hub_url(origin.repo, name, revision=commit, endpoint=origin.endpoint)


def headers_of(origin: Origin) -> dict[str, str]:
    """What every request to the source carries; redirects to another host leave the secrets behind."""
    from huggingface_hub.utils import build_hf_headers

    if origin.provider == "modelscope":
        return build_hf_headers(token=False) | _modelscope_headers()
    return build_hf_headers(token=token_of(origin) or False)


def _modelscope_headers() -> dict[str, str]:
    """The token goes to ModelScope alone: a redirect to another host leaves both headers behind."""
    token = os.environ.get(MODELSCOPE_TOKEN)
    return {"authorization": f"Bearer {token}", "cookie": f"m_session_id={token}"} if token else {}


def token_of(origin: Origin) -> str | None:
    """What opens gated models: from the file that was named, the environment, or the hub client's own login.

    That login was made at the hub, so a mirror does not get it.
    """
    from huggingface_hub import get_token

    if origin.token_file:
        return read_token(Path(origin.token_file))
    if origin.endpoint is None:
        return get_token()
    return os.environ.get("HF_TOKEN", "").strip() or None


def read_token(path: Path) -> str:
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            tr(
                "the token cannot be read from {path}: {reason}",
                path=path,
                reason=getattr(error, "strerror", None) or error,
            ),
            tr("check --hf-token-file (HF_TOKEN_PATH)"),
        ) from None
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ModelError(
            tr("{path} holds no token", path=path), tr("write the token alone into the file, readable by root only")
        )
    return token
