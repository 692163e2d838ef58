"""One service: how fast it answers, how much of its memory is in use, and what was done to it."""

from __future__ import annotations

from scripts.boards.words import (
    A_SERVICE,
    ENGINE,
    ENGINES,
    GREEN,
    HOSTS,
    ORANGE,
    RATE,
    RED,
    SERVICE,
    Board,
    Query,
    Row,
    Variable,
    graph,
    mean,
    percentile,
    percentiles,
    rate,
    share,
    stat,
)

FOUND_IN_CACHE = " / ".join(
    f"sum(rate(vllm:prefix_cache_{each}_total{{{ENGINE}}}{RATE}))" for each in ("hits", "queries")
)

ONE_SERVICE = Board(
    "vllm-install-service",
    "vLLM: one service",
    "How fast one service answers, how much of its memory is in use, and what was done to it.",
    (HOSTS, Variable("service", "service", A_SERVICE, many=False)),
    (
        Row(
            "Now",
            (
                stat(
                    "Engines that answer",
                    "Replicas of the service that answer.",
                    f"sum(vllm_install_ready{{{SERVICE}}})",
                    "short",
                    (None, RED),
                    (1, GREEN),
                ),
                stat("Running", "Requests in the engines.", f"sum(vllm:num_requests_running{{{ENGINE}}})"),
                stat(
                    "Waiting",
                    "Requests in the engines' queues.",
                    f"sum(vllm:num_requests_waiting{{{ENGINE}}})",
                    "short",
                    (None, GREEN),
                    (10, ORANGE),
                    (100, RED),
                ),
                stat(
                    "Tokens made",
                    "Tokens of answers a second.",
                    f"sum(rate(vllm:generation_tokens_total{{{ENGINE}}}{RATE}))",
                    "suffix: tok/s",
                ),
                stat(
                    "First token, p95",
                    "95 of 100 requests had their first token sooner.",
                    percentile(0.95, "vllm:time_to_first_token_seconds"),
                    "s",
                ),
                stat(
                    "Each token, p95",
                    "The time between two tokens of an answer.",
                    percentile(0.95, "vllm:inter_token_latency_seconds"),
                    "s",
                ),
            ),
        ),
        Row(
            "How fast",
            (
                graph(
                    "First token",
                    "From the request to the first token, and the target that is alerted on.",
                    *percentiles("vllm:time_to_first_token_seconds"),
                    Query(f'vllm_install_target_seconds{{{SERVICE}, of="ttft"}}', "target"),
                    unit="s",
                ),
                graph(
                    "Each token",
                    "Between two tokens of an answer, and the target that is alerted on.",
                    *percentiles("vllm:inter_token_latency_seconds"),
                    Query(f'vllm_install_target_seconds{{{SERVICE}, of="itl"}}', "target"),
                    unit="s",
                ),
                graph(
                    "Whole answer",
                    "From the request to its last token.",
                    *percentiles("vllm:e2e_request_latency_seconds"),
                    unit="s",
                ),
                graph(
                    "Where the time goes",
                    "The mean of each request's time in the queue, on its prompt, and on its answer.",
                    Query(mean("vllm:request_queue_time_seconds"), "queue"),
                    Query(mean("vllm:request_prefill_time_seconds"), "prompt"),
                    Query(mean("vllm:request_decode_time_seconds"), "answer"),
                    unit="s",
                    stacked=True,
                ),
                graph(
                    "In the queue",
                    "Until the engine takes a request up. What is below 0.3 s, vLLM does not tell apart.",
                    *percentiles("vllm:request_queue_time_seconds"),
                    unit="s",
                ),
                graph(
                    "Lengths",
                    "The 95th percentile of the tokens of a prompt and of an answer.",
                    Query(percentile(0.95, "vllm:request_prompt_tokens"), "prompt"),
                    Query(percentile(0.95, "vllm:request_generation_tokens"), "answer"),
                ),
            ),
        ),
        Row(
            "How much",
            (
                graph(
                    "Tokens",
                    "Tokens a second: read from prompts, of these found in the cache, and made.",
                    Query(f"sum(rate(vllm:prompt_tokens_total{{{ENGINE}}}{RATE}))", "read"),
                    Query(f"sum(rate(vllm:prefix_cache_hits_total{{{ENGINE}}}{RATE}))", "found in the cache"),
                    Query(f"sum(rate(vllm:generation_tokens_total{{{ENGINE}}}{RATE}))", "made"),
                    unit="suffix: tok/s",
                ),
                graph(
                    "Requests, by how they ended",
                    "stop: the model was done; length: no more tokens were wanted; abort: the client went.",
                    Query(rate("vllm:request_success_total", "finished_reason"), "{{finished_reason}}"),
                    unit="reqps",
                    stacked=True,
                ),
                graph(
                    "Running and waiting",
                    "Requests in each engine, and in its queue.",
                    Query(f"vllm:num_requests_running{{{ENGINE}}}", "{{member}} running"),
                    Query(f"vllm:num_requests_waiting{{{ENGINE}}}", "{{member}} waiting"),
                ),
                share(
                    "KV cache",
                    "How much of each engine's KV cache is in use. Full, it has to evict requests.",
                    Query(f"vllm:kv_cache_usage_perc{{{ENGINE}}}", "engine {{member}}"),
                ),
                graph(
                    "Preemptions",
                    "Requests that were put out of a full KV cache, a second.",
                    Query(rate("vllm:num_preemptions_total", "member"), "engine {{member}}"),
                ),
                share(
                    "Prefix cache",
                    "The share of prompts' tokens that was found in the prefix cache.",
                    Query(
                        FOUND_IN_CACHE,
                        "found",
                    ),
                ),
            ),
        ),
        Row(
            "Its life",
            (
                ENGINES,
                graph(
                    "A start",
                    "How long the present start of each engine takes, and may take.",
                    Query(f"vllm_install_starting_seconds{{{SERVICE}}}", "engine {{member}}"),
                    Query(f"max(vllm_install_start_limit_seconds{{{SERVICE}}})", "may take"),
                    unit="s",
                    width=12,
                    height=6,
                ),
                graph(
                    "Restarts",
                    "By systemd, in the last hour.",
                    Query(f"increase(vllm_install_restarts_total{{{SERVICE}}}[1h])", "engine {{member}}"),
                ),
                graph(
                    "Callers who wait",
                    "Held in the kernel's queue until an engine serves.",
                    Query(f"sum(vllm_install_waiting_callers{{{SERVICE}}})", "callers"),
                ),
                graph(
                    "Last word of the watcher",
                    "Since it last told systemd that the engine is well.",
                    Query(f"vllm_install_watchdog_age_seconds{{{SERVICE}}}", "engine {{member}}"),
                    unit="s",
                ),
            ),
        ),
    ),
)
