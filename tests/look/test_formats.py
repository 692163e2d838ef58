"""What editors and chat programs read, read back: the address, the model, and where the key goes."""

from __future__ import annotations

import dataclasses
import json
import subprocess

import pytest
from hypothesis import given

from installer.base.errors import UsageError
from installer.look.client import Client
from installer.look.formats import FORMATS, PLACEHOLDER, TRUST_ELSEWHERE
from tests.look.test_client import CLIENTS, KEY, PRIVATE

KNOWN = Client("http://h:8000/v1", "m", None, None, 8192, takes_images=True, calls_tools=True)


def sourced(text: str) -> dict[str, str]:
    """What a shell makes of it."""
    said = subprocess.run(["env", "-i", "sh", "-ac", text + "env -0"], check=True, capture_output=True).stdout
    pairs = (each.decode().split("=", 1) for each in said.split(b"\0") if each)
    return {name: value for name, value in pairs if name not in ("PWD", "SHLVL", "_")}


@given(CLIENTS)
def test_claude_code_is_told_the_model_for_each_size_and_the_address_without_a_version(client: Client) -> None:
    names = ("ANTHROPIC_MODEL", *(f"ANTHROPIC_DEFAULT_{size}_MODEL" for size in ("OPUS", "SONNET", "HAIKU")))
    assert sourced(FORMATS["claude-code"](client)) == {
        "ANTHROPIC_BASE_URL": "http://[::1]:8000", "ANTHROPIC_AUTH_TOKEN": client.key or PLACEHOLDER,
        **dict.fromkeys(names, client.model), "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }  # fmt: skip
    known = sourced(FORMATS["claude-code"](KNOWN))
    assert known["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] == "2048", "it asks for more than the context by itself"


@given(CLIENTS)
def test_open_webui_is_told_by_variables(client: Client) -> None:
    assert sourced(FORMATS["open-webui"](client)) == {
        "OPENAI_API_BASE_URL": client.base_url, "OPENAI_API_KEY": client.key or PLACEHOLDER,
        "DEFAULT_MODELS": client.model, "ENABLE_OLLAMA_API": "false",
    }  # fmt: skip


@given(CLIENTS)
def test_opencode_has_a_provider_with_the_one_model(client: Client) -> None:
    block = json.loads(FORMATS["opencode"](client))
    provider = block["provider"]["vllm"]
    key = client.key or "{env:OPENAI_API_KEY}"
    assert provider["options"] == {"baseURL": client.base_url, "apiKey": key}
    assert (list(provider["models"]), block["model"]) == ([client.model], f"vllm/{client.model}")
    (known,) = json.loads(FORMATS["opencode"](KNOWN))["provider"]["vllm"]["models"].values()
    assert known["limit"] == {"context": 8192, "output": 2048}


@pytest.mark.parametrize("words", ["{env:HOME}", "{file:/etc/passwd}"])
def test_what_opencode_would_look_up_is_refused(words: str) -> None:
    for client in (Client("http://h/v1", words), Client("http://h/v1", "m", words)):
        with pytest.raises(UsageError, match="opencode"):
            FORMATS["opencode"](client)


@given(CLIENTS)
def test_vscode_has_an_endpoint_and_keeps_the_key_itself_where_none_is_shown(client: Client) -> None:
    (group,) = json.loads(FORMATS["vscode"](client))
    (model,) = group["models"]
    assert (model["id"], model["url"]) == (client.model, f"{client.base_url}/chat/completions")
    assert group.get("apiKey") == client.key
    (known,) = json.loads(FORMATS["vscode"](KNOWN))[0]["models"]
    assert (known["maxInputTokens"] + known["maxOutputTokens"], known["vision"], known["toolCalling"]) == (
        8192,
        True,
        True,
    )


@given(CLIENTS)
def test_jetbrains_is_told_by_the_names_of_its_fields(client: Client) -> None:
    said = dict(line.split(": ", 1) for line in FORMATS["jetbrains"](client).splitlines()[1:])
    assert said == {"URL": client.base_url, "API Key": client.key or PLACEHOLDER, "Model": client.model}


def test_whom_to_trust_is_said_where_there_is_a_place_for_it() -> None:
    assert PRIVATE.authority
    silent = {form for form, text in FORMATS.items() if PRIVATE.authority not in text(PRIVATE)}
    assert silent == set(TRUST_ELSEWHERE)
    public = dataclasses.replace(PRIVATE, authority=None, key=KEY)
    assert all("ca.pem" not in text(public) for form, text in FORMATS.items() if form != "spring")
