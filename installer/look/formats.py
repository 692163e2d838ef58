"""What a client needs to use a service, in the form that it reads: to be pasted, or written into a file of its own."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping

from installer.base.errors import InstallError, UsageError
from installer.base.language import tr
from installer.look.client import Client

KEY_VARIABLE = "OPENAI_API_KEY"
PLACEHOLDER = "REPLACE-WITH-YOUR-KEY"
TIMEOUT = 120  # seconds; a long answer of a busy model takes its time
ANSWER = 16384  # tokens that an answer may have where a quarter of the context is more


def env(client: Client) -> str:
    """For `set -a; . ./file`, and for programs that read .env files."""
    return _variables(
        {
            KEY_VARIABLE: client.key or PLACEHOLDER,
            "OPENAI_BASE_URL": client.base_url,
            "OPENAI_API_BASE": client.base_url,  # its older name, which some clients still read
            "AGENT_MODEL": client.model,
            **({"SSL_CERT_FILE": client.authority} if client.authority else {}),
        }
    )


def spring(client: Client) -> str:
    for text in (client.model, client.key or ""):
        if "${" in text:
            raise _unsuitable("Spring", "${")
    key = client.key or f"${{{KEY_VARIABLE}}}"
    return (
        "vllm:\n"
        f"  url: {_yaml(client.base_url)}\n"
        f"  model: {_yaml(client.model)}\n"
        f"  api-key: {_yaml(key)}\n"
        f"  timeout: {TIMEOUT}s\n" + (f"  ca-certificate: {_yaml(client.authority)}\n" if client.authority else "")
    )


def python(client: Client) -> str:
    key = repr(client.key) if client.key else f'os.environ["{KEY_VARIABLE}"]'
    modules = "".join(f"import {name}\n" for name in ("os",) * (not client.key) + ("ssl",) * bool(client.authority))
    trust = f", http_client=DefaultHttpxClient(verify=ssl.create_default_context(cafile={client.authority!r}))"
    return (
        (f"{modules}\n" if modules else "")
        + f"from openai import {'DefaultHttpxClient, ' if client.authority else ''}OpenAI\n\n"
        + f"client = OpenAI(base_url={client.base_url!r}, api_key={key}, timeout={TIMEOUT}"
        + f"{trust if client.authority else ''})\n"
        + "answer = client.chat.completions.create(\n"
        + f"    model={client.model!r},\n"
        + '    messages=[{"role": "user", "content": "Hello"}],\n'
        + ")\n"
        + "print(answer.choices[0].message.content)\n"
    )


def curl(client: Client) -> str:
    body = json.dumps({"model": client.model, "messages": [{"role": "user", "content": "Hello"}]}, ensure_ascii=False)
    header = (
        shlex.quote(f"Authorization: Bearer {client.key}") if client.key else f'"Authorization: Bearer ${KEY_VARIABLE}"'
    )
    trust = f"--cacert {shlex.quote(client.authority)} " if client.authority else ""
    return (
        f"curl {trust}{shlex.quote(client.base_url)}/chat/completions -H {header} \\\n"
        f"  -H 'Content-Type: application/json' -d {shlex.quote(body)}\n"
    )


def litellm(client: Client) -> str:
    for text in (client.model, client.key or ""):
        if text.startswith("os.environ/"):
            raise _unsuitable("LiteLLM", "os.environ/")
    key = client.key or f"os.environ/{KEY_VARIABLE}"
    return (
        "model_list:\n"
        f"  - model_name: {_yaml(client.model)}\n"
        "    litellm_params:\n"
        f"      model: {_yaml('hosted_vllm/' + client.model)}\n"
        f"      api_base: {_yaml(client.base_url)}\n"
        f"      api_key: {_yaml(key)}\n"
        f"      timeout: {TIMEOUT}\n"
        + (f"litellm_settings:\n  ssl_verify: {_yaml(client.authority)}\n" if client.authority else "")
    )


def claude_code(client: Client) -> str:
    """Variables of Claude Code, which asks /v1/messages, and for three sizes of model."""
    names = ("ANTHROPIC_MODEL", *(f"ANTHROPIC_DEFAULT_{size}_MODEL" for size in ("OPUS", "SONNET", "HAIKU")))
    return _variables(
        {
            "ANTHROPIC_BASE_URL": client.base_url.removesuffix("/v1"),
            "ANTHROPIC_AUTH_TOKEN": client.key or PLACEHOLDER,
            **dict.fromkeys(names, client.model),
            **({"CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(_answer(client.context))} if client.context else {}),
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            **({"NODE_EXTRA_CA_CERTS": client.authority} if client.authority else {}),
        }
    )


def open_webui(client: Client) -> str:
    return _variables(
        {
            "OPENAI_API_BASE_URL": client.base_url,
            "OPENAI_API_KEY": client.key or PLACEHOLDER,
            "DEFAULT_MODELS": client.model,
            "ENABLE_OLLAMA_API": "false",
            **({"SSL_CERT_FILE": client.authority} if client.authority else {}),
        }
    )


def opencode(client: Client) -> str:
    """A block for opencode.json."""
    for text in (client.model, client.key or ""):
        for words in ("{env:", "{file:"):
            if words in text:
                raise _unsuitable("opencode", words)
    limit = {"context": client.context, "output": _answer(client.context)} if client.context else {}
    options = {"baseURL": client.base_url, "apiKey": client.key or f"{{env:{KEY_VARIABLE}}}"}
    models = {client.model: {"name": client.model, **({"limit": limit} if limit else {})}}
    provider = {"npm": "@ai-sdk/openai-compatible", "name": "vLLM", "options": options, "models": models}
    return _json({
        "$schema": "https://opencode.ai/config.json", "provider": {"vllm": provider}, "model": f"vllm/{client.model}",
    })  # fmt: skip


def vscode(client: Client) -> str:
    """For chatLanguageModels.json; without a key in it, the editor asks for one and keeps it."""
    room = {"maxInputTokens": client.context - _answer(client.context)} if client.context else {}
    model = {
        "id": client.model, "name": client.model, "url": f"{client.base_url}/chat/completions",
        "toolCalling": client.calls_tools, "vision": client.takes_images, **room,
        "maxOutputTokens": _answer(client.context),
    }  # fmt: skip
    key = {"apiKey": client.key} if client.key else {}
    return _json(
        [{"name": "vLLM", "vendor": "customendpoint", **key, "apiType": "chat-completions", "models": [model]}]
    )


def jetbrains(client: Client) -> str:
    """Its AI Assistant reads no file: what to enter, by the names of its fields."""
    return (
        "Settings | Tools | AI Assistant | Providers & API keys | OpenAI-compatible\n"
        f"URL: {client.base_url}\n"
        f"API Key: {client.key or PLACEHOLDER}\n"
        f"Model: {client.model}\n"
    )


FORMATS: dict[str, Callable[[Client], str]] = {
    "env": env, "spring": spring, "python": python, "curl": curl, "litellm": litellm, "claude-code": claude_code,
    "opencode": opencode, "vscode": vscode, "jetbrains": jetbrains, "open-webui": open_webui,
}  # fmt: skip
# They have nowhere to write down whom to trust.
TRUST_ELSEWHERE = ("opencode", "vscode", "jetbrains")


def _variables(values: Mapping[str, str]) -> str:
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())


def _answer(context: int | None) -> int:
    return min(ANSWER, context // 4) if context else ANSWER


def _json(content: object) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _yaml(text: str) -> str:
    """A JSON string is one of YAML's; settings hold no character that would need more than JSON's escapes."""
    return json.dumps(text, ensure_ascii=False)


def _unsuitable(reader: str, words: str) -> InstallError:
    return UsageError(
        tr("{reader} would not take the name or the key literally: it holds {words}", reader=reader, words=words),
        tr("serve the model under another name: sudo vllm-install set SERVED_MODEL_NAME=..."),
    )
