"""Who uses the services: requests, tokens and limits of each key."""

from __future__ import annotations

from scripts.boards.words import (
    ALL_SERVICES,
    ENGINE,
    GREEN,
    HOSTS,
    ORANGE,
    RATE,
    RED,
    SERVICE,
    Board,
    Panel,
    Query,
    Row,
    biggest,
    count,
    graph,
    rate,
    share,
    stat,
    total,
)

KEYS_IN_USE = (
    f"count(sum by (service, key) (increase(vllm_install_requests_total{{{ENGINE}}}[$__range])) > 0) or vector(0)"
)
CACHED_OF_KEY = " / ".join(rate(f"vllm_install_{each}_tokens_total", "service, key") for each in ("cached", "prompt"))

KEYS = Board(
    "vllm-install-keys",
    "vLLM: keys",
    "What each key uses, what it is refused, and when it ends.",
    (HOSTS, ALL_SERVICES),
    (
        Row(
            "Now",
            (
                stat(
                    "Keys in use",
                    "Keys that asked for anything in the time shown.",
                    KEYS_IN_USE,
                ),
                stat(
                    "Requests",
                    "Answered, all keys together.",
                    total(f"rate(vllm_install_requests_total{{{ENGINE}}}{RATE})"),
                    "reqps",
                ),
                stat(
                    "Tokens made",
                    "All keys together, a second.",
                    total(f"rate(vllm_install_completion_tokens_total{{{ENGINE}}}{RATE})"),
                    "suffix: tok/s",
                ),
                stat(
                    "Refused",
                    "By a key's limit, in the time shown.",
                    count("vllm_install_refused_total", ENGINE),
                    "short",
                    (None, GREEN),
                    (1, ORANGE),
                ),
                stat(
                    "Errors",
                    "In the time shown.",
                    count("vllm_install_errors_total", ENGINE),
                    "short",
                    (None, GREEN),
                    (1, ORANGE),
                ),
                stat(
                    "Next key to end",
                    "The time that is left to it.",
                    f"min(vllm_install_key_expires_timestamp_seconds{{{SERVICE}}}) - time()",
                    "s",
                    (None, RED),
                    (7 * 86400, ORANGE),
                    (30 * 86400, GREEN),
                ),
            ),
        ),
        Row(
            "Use",
            (
                graph(
                    "Tokens made",
                    "Tokens of answers a second, by key.",
                    Query(rate("vllm_install_completion_tokens_total", "service, key"), "{{service}} {{key}}"),
                    unit="suffix: tok/s",
                    width=12,
                    stacked=True,
                ),
                graph(
                    "Tokens read",
                    "Tokens of prompts a second, by key.",
                    Query(rate("vllm_install_prompt_tokens_total", "service, key"), "{{service}} {{key}}"),
                    unit="suffix: tok/s",
                    width=12,
                    stacked=True,
                ),
                graph(
                    "Requests",
                    "Requests that were answered, by key.",
                    Query(rate("vllm_install_requests_total", "service, key"), "{{service}} {{key}}"),
                    unit="reqps",
                    width=12,
                ),
                share(
                    "Found in the cache",
                    "The share of each key's prompts that the engine had in its cache.",
                    Query(
                        CACHED_OF_KEY,
                        "{{service}} {{key}}",
                    ),
                    width=12,
                ),
            ),
        ),
        Row(
            "Limits",
            (
                graph(
                    "Refused",
                    "Requests that a key's limit refused.",
                    Query(rate("vllm_install_refused_total", "service, key"), "{{service}} {{key}}"),
                    unit="reqps",
                ),
                graph(
                    "Errors",
                    "Requests that ended in an error.",
                    Query(rate("vllm_install_errors_total", "service, key"), "{{service}} {{key}}"),
                    unit="reqps",
                ),
                Panel(
                    "Ends",
                    "The time that is left to each key that has an end.",
                    (
                        Query(
                            f"sort(vllm_install_key_expires_timestamp_seconds{{{SERVICE}}} - time())",
                            "{{service}} {{key}}",
                        ),
                    ),
                    "bargauge",
                    "s",
                    steps=((None, RED), (7 * 86400, ORANGE), (30 * 86400, GREEN)),
                ),
                Panel(
                    "Most tokens made",
                    "In the time shown.",
                    (Query(biggest("vllm_install_completion_tokens_total"), "{{service}} {{key}}"),),
                    "bargauge",
                    width=12,
                ),
                Panel(
                    "Most requests",
                    "In the time shown.",
                    (Query(biggest("vllm_install_requests_total"), "{{service}} {{key}}"),),
                    "bargauge",
                    width=12,
                ),
            ),
        ),
    ),
)
