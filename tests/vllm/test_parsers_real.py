"""The parsers that a profile chooses, in the real vLLM: it starts with them, and a request with tools is answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from installer.base.host import Host
from installer.model import builtin
from tests.kit.boot import compiled
from tests.kit.boot.machine import Machine
from tests.kit.boot.surroundings import free_port
from tests.kit.life import ask, cli
from tests.kit.memory import share

MODEL = "/srv/models/tiny"
# Shows the tools to the model and opens its reasoning, as templates of the Qwen3 family do.
TEMPLATE = (
    "{% if tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}"
    '<tool_call>{"name": "…", "arguments": {}}</tool_call>{% endif %}'
    + builtin.CHAT_TEMPLATE
    + "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
)
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"sunny": {"type": "boolean"}}, "required": ["sunny"]},
    },
}


def test_parity_row_28_a_request_with_tools_is_taken(cpu_engine: str) -> None:
    port = free_port()
    with Machine(network=True, store=True) as machine:
        compiled.give(machine)
        folder: Path = machine.at(MODEL)
        folder.mkdir(parents=True)
        builtin.write(folder, Host())
        (folder / "chat_template.jinja").write_text(TEMPLATE)
        options = ("--engine", "cpu", "--gpu-memory-utilization", share(), "--port", str(port), "--context", "4096")
        done = cli(machine, "deploy", "--model", MODEL, "--served-model-name", "builtin:tiny", *options, timeout=600)
        assert "tool calls by hermes, reasoning by qwen3" in done.err
        body = {"model": "builtin:tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 64}

        def answer(**more: object) -> dict[str, Any]:
            given = ask(machine, "POST", "/v1/chat/completions", done.key, body | more, port)
            assert given.status == 200, given
            return dict(given.json["choices"][0]["message"])

        # The template leaves the reasoning open, so all that comes before its end is reasoning.
        thought = answer()
        assert (thought["content"], bool(thought["reasoning"])) == (None, True)
        plain = answer(chat_template_kwargs={"enable_thinking": False})
        assert (bool(plain["content"]), plain["reasoning"]) == (True, None)

        # Without a parser this would be refused: "auto" tool choice requires --enable-auto-tool-choice.
        assert answer(tools=[WEATHER], tool_choice="auto")
        named = {"type": "function", "function": {"name": "weather"}}
        called = answer(tools=[WEATHER], tool_choice=named, chat_template_kwargs={"enable_thinking": False})
        (call,) = called["tool_calls"]
        assert call["function"]["name"] == "weather"
