"""All services of the host: do they answer, what do they do, and is there room."""

from __future__ import annotations

from scripts.boards.words import (
    ALL_SERVICES,
    BAD_FROM_ONE,
    ENGINE,
    ENGINES,
    GREEN,
    HOSTS,
    ON_HOST,
    ORANGE,
    RATE,
    RED,
    SERVICE,
    Board,
    Panel,
    Query,
    Row,
    graph,
    percentile,
    rate,
    share,
    stat,
    total,
)

# What node-exporter says by itself bears no host, but comes from where ours of that host comes from.
HERE = f"and on (instance) vllm_install_gpus_readable{{{ON_HOST}}}"
HOST = Board(
    "vllm-install-host",
    "vLLM: host",
    "All services of the host: do they answer, what do they do, and is there room.",
    (HOSTS, ALL_SERVICES),
    (
        Row(
            "Now",
            (
                stat("Services", "Services deployed here.", f"count(vllm_install_service_info{{{SERVICE}}})"),
                stat(
                    "Not answering",
                    "Engines that do not answer, of all that should.",
                    f"count(vllm_install_ready{{{SERVICE}}}) - sum(vllm_install_ready{{{SERVICE}}})",
                    "short",
                    *BAD_FROM_ONE,
                ),
                stat(
                    "Alerts",
                    "Firing now.",
                    f'count(ALERTS{{{ON_HOST}, alertstate="firing"}}) or vector(0)',
                    "short",
                    *BAD_FROM_ONE,
                ),
                stat(
                    "Requests",
                    "Answered by all services.",
                    total(f"rate(vllm:request_success_total{{{ENGINE}}}{RATE})"),
                    "reqps",
                ),
                stat(
                    "Tokens made",
                    "By all services, a second.",
                    total(f"rate(vllm:generation_tokens_total{{{ENGINE}}}{RATE})"),
                    "suffix: tok/s",
                ),
                stat(
                    "Callers waiting",
                    "Held in the kernel's queue until an engine serves.",
                    total(f"vllm_install_waiting_callers{{{SERVICE}}}"),
                    "short",
                    (None, GREEN),
                    (1, ORANGE),
                ),
                ENGINES,
                Panel(
                    "What is deployed",
                    "Each service, and what it serves.",
                    (Query(f"vllm_install_service_info{{{SERVICE}}}"),),
                    "table",
                    width=12,
                    height=6,
                    columns=("service", "model", "engine", "form"),
                ),
            ),
        ),
        Row(
            "Work",
            (
                graph(
                    "Tokens made",
                    "Tokens of answers a second.",
                    Query(rate("vllm:generation_tokens_total", "service"), "{{service}}"),
                    unit="suffix: tok/s",
                ),
                graph(
                    "Requests",
                    "Requests that were answered.",
                    Query(rate("vllm:request_success_total", "service"), "{{service}}"),
                    unit="reqps",
                ),
                graph(
                    "Running and waiting",
                    "Requests in the engines, and in their queues.",
                    Query(f"sum by (service) (vllm:num_requests_running{{{ENGINE}}})", "{{service}} running"),
                    Query(f"sum by (service) (vllm:num_requests_waiting{{{ENGINE}}})", "{{service}} waiting"),
                ),
                graph(
                    "First token",
                    "The 95th percentile of the time to the first token.",
                    Query(percentile(0.95, "vllm:time_to_first_token_seconds", "service"), "{{service}}"),
                    unit="s",
                ),
                graph(
                    "Refused and failed",
                    "Requests that a key's limit refused, and that ended in an error.",
                    Query(rate("vllm_install_refused_total", "service"), "{{service}} refused"),
                    Query(rate("vllm_install_errors_total", "service"), "{{service}} failed"),
                    unit="reqps",
                ),
                graph(
                    "Restarts",
                    "By systemd, in the last hour.",
                    Query(f"sum by (service) (increase(vllm_install_restarts_total{{{SERVICE}}}[1h]))", "{{service}}"),
                ),
            ),
        ),
        Row(
            "Room",
            (
                Panel(
                    "Disk in use",
                    "Of the file systems with weights, engines and records of usage.",
                    (
                        Query(
                            f"1 - vllm_install_disk_free_bytes{{{ON_HOST}}} / vllm_install_disk_size_bytes",
                            "{{host}} {{what}}",
                        ),
                    ),
                    "bargauge",
                    "percentunit",
                    steps=((None, GREEN), (0.8, ORANGE), (0.9, RED)),
                    top=1,
                ),
                share(
                    "Host",
                    "Processors and memory of the host.",
                    Query(
                        f'1 - avg by (instance) (rate(node_cpu_seconds_total{{mode="idle"}}{RATE})) {HERE}',
                        "{{instance}} processors",
                    ),
                    Query(
                        f"1 - node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes {HERE}", "{{instance}} memory"
                    ),
                ),
                Panel(
                    "Runs out",
                    "Certificates and keys, the time that is left to each.",
                    (
                        Query(
                            f"vllm_install_certificate_expires_timestamp_seconds{{{SERVICE}}} - time()",
                            "{{service}} certificate",
                        ),
                        Query(
                            f"vllm_install_key_expires_timestamp_seconds{{{SERVICE}}} - time()",
                            "{{service}} key {{key}}",
                        ),
                    ),
                    "bargauge",
                    "s",
                    steps=((None, RED), (7 * 86400, ORANGE), (30 * 86400, GREEN)),
                ),
                stat(
                    "Age of these figures",
                    "Since the host was last looked at; every 15 s.",
                    f"time() - min(vllm_install_collected_timestamp_seconds{{{ON_HOST}}})",
                    "s",
                    (None, GREEN),
                    (60, RED),
                ),
                stat(
                    "Fallback in use",
                    "Services that answer from their fallback.",
                    total(f"vllm_install_fallback{{{SERVICE}}}"),
                    "short",
                    *BAD_FROM_ONE,
                ),
                stat(
                    "Rolled back",
                    "Services of which a change went back in the last day.",
                    total(f"time() - vllm_install_rolled_back_timestamp_seconds{{{SERVICE}}} < bool 86400"),
                    "short",
                    (None, GREEN),
                    (1, ORANGE),
                ),
            ),
        ),
    ),
)
