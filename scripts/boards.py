"""The four dashboards as data: what each panel asks Prometheus, and how that is shown."""

from __future__ import annotations

from dataclasses import dataclass

GREEN, BLUE, YELLOW, ORANGE, RED, GREY = "green", "blue", "yellow", "orange", "red", "text"
SERVICE = 'service=~"$service"'
ENGINE = f'job="vllm-install", {SERVICE}'
GPU = 'uuid=~"$gpu"'
RATE = "[$__rate_interval]"


@dataclass(frozen=True)
class Query:
    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """One panel; `steps` are the colours of a value from each limit on, `states` the words and colours of a number."""

    title: str
    about: str
    queries: tuple[Query, ...]
    kind: str = "timeseries"
    unit: str = "short"
    width: int = 8
    steps: tuple[tuple[float | None, str], ...] = ((None, BLUE),)
    states: tuple[tuple[int, str, str], ...] = ()
    top: float | None = None
    stacked: bool = False
    columns: tuple[str, ...] = ()
    height: int = 8


@dataclass(frozen=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Variable:
    """What a reader chooses; `many` of them, or one."""

    name: str
    label: str
    query: str
    many: bool = True


@dataclass(frozen=True)
class Board:
    uid: str
    title: str
    about: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]


def stat(title: str, about: str, expr: str, unit: str = "short", *steps: tuple[float | None, str]) -> Panel:
    return Panel(title, about, (Query(expr),), "stat", unit, 4, steps or ((None, BLUE),), height=4)


def graph(
    title: str,
    about: str,
    *queries: Query,
    unit: str = "short",
    width: int = 8,
    stacked: bool = False,
    height: int = 8,
) -> Panel:
    return Panel(title, about, queries, unit=unit, width=width, stacked=stacked, height=height)


def share(title: str, about: str, *queries: Query, width: int = 8) -> Panel:
    return Panel(title, about, queries, unit="percentunit", width=width, top=1)


def rate(metric: str, by: str, of: str = ENGINE) -> str:
    return f"sum by ({by}) (rate({metric}{{{of}}}{RATE}))"


def percentile(quantile: float, metric: str, by: str = "") -> str:
    labels = ", ".join(("le", by) if by else ("le",))
    return f"histogram_quantile({quantile:g}, {rate(f'{metric}_bucket', labels)})"


def percentiles(metric: str) -> tuple[Query, ...]:
    return tuple(Query(percentile(each, metric), f"p{each * 100:.0f}") for each in (0.5, 0.9, 0.99))


def mean(metric: str) -> str:
    sums, counts = (f"sum(rate({metric}_{part}{{{ENGINE}}}{RATE}))" for part in ("sum", "count"))
    return f"{sums} / {counts}"


def total(expr: str) -> str:
    """A number in any case: nothing that is counted is none of it."""
    return f"sum({expr}) or vector(0)"


def count(metric: str, of: str, span: str = "[$__range]") -> str:
    """How often, as a whole number: Prometheus extrapolates to the edges of the time shown."""
    return f"round(sum(increase({metric}{{{of}}}{span}))) or vector(0)"


def biggest(metric: str) -> str:
    return f"topk(10, sum by (service, key) (increase({metric}{{{ENGINE}}}[$__range])))"


KEYS_IN_USE = (
    f"count(sum by (service, key) (increase(vllm_install_requests_total{{{ENGINE}}}[$__range])) > 0) or vector(0)"
)
CACHED_OF_KEY = " / ".join(rate(f"vllm_install_{each}_tokens_total", "service, key") for each in ("cached", "prompt"))
FOUND_IN_CACHE = " / ".join(
    f"sum(rate(vllm:prefix_cache_{each}_total{{{ENGINE}}}{RATE}))" for each in ("hits", "queries")
)
BAD_FROM_ONE = ((None, GREEN), (1, RED))
ALL_SERVICES = Variable("service", "service", "label_values(vllm_install_service_info, service)")
ENGINES = Panel(
    "Engines",
    "Each engine: stopped, starting (systemd waits for its first answer) or ready (it answers).",
    (Query(f"vllm_install_active{{{SERVICE}}} + vllm_install_ready{{{SERVICE}}}", "{{service}} {{member}}"),),
    "state-timeline",
    width=12,
    height=6,
    states=((0, "not active", RED), (1, "does not answer", ORANGE), (2, "ready", GREEN)),
)

HOST = Board(
    "vllm-install-host",
    "vLLM: host",
    "All services of the host: do they answer, what do they do, and is there room.",
    (ALL_SERVICES,),
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
                    "Alerts", "Firing now.", 'count(ALERTS{alertstate="firing"}) or vector(0)', "short", *BAD_FROM_ONE
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
                    (Query("1 - vllm_install_disk_free_bytes / vllm_install_disk_size_bytes", "{{what}}"),),
                    "bargauge",
                    "percentunit",
                    steps=((None, GREEN), (0.8, ORANGE), (0.9, RED)),
                    top=1,
                ),
                share(
                    "Host",
                    "Processors and memory of the host.",
                    Query(f'1 - avg(rate(node_cpu_seconds_total{{mode="idle"}}{RATE}))', "processors"),
                    Query("1 - node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes", "memory"),
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
                    "time() - max(vllm_install_collected_timestamp_seconds)",
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

ONE_SERVICE = Board(
    "vllm-install-service",
    "vLLM: one service",
    "How fast one service answers, how much of its memory is in use, and what was done to it.",
    (Variable("service", "service", "label_values(vllm_install_service_info, service)", many=False),),
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

KEYS = Board(
    "vllm-install-keys",
    "vLLM: keys",
    "What each key uses, what it is refused, and when it ends.",
    (ALL_SERVICES,),
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

OF_GPU = "{{gpu}}"
ANY = 'job="vllm-install"'
USED = "* on (uuid) group_right () vllm_install_gpu_used_by"
ENERGY = f"sum by (service) (rate(vllm_install_gpu_energy_joules_total{{{GPU}}}{RATE}) {USED})"
ENERGY_OF_TOKEN = f"{ENERGY} / on (service) {rate('vllm:generation_tokens_total', 'service', ANY)}"
GPUS = Board(
    "vllm-install-gpus",
    "vLLM: GPUs",
    "What the GPUs do, what they need for it, and whether they are well.",
    (Variable("gpu", "GPU", "label_values(vllm_install_gpu_info, uuid)"),),
    (
        Row(
            "Now",
            (
                stat("GPUs", "GPUs that the driver names.", f"count(vllm_install_gpu_info{{{GPU}}})"),
                stat(
                    "Lost",
                    "GPUs that a service was given and that are not there.",
                    "count(vllm_install_gpu_lost) or vector(0)",
                    "short",
                    *BAD_FROM_ONE,
                ),
                stat(
                    "Drivers",
                    "Whether they answered for all GPUs.",
                    "min(vllm_install_gpus_readable)",
                    "bool_yes_no",
                    (None, RED),
                    (1, GREEN),
                ),
                stat("Power", "Of all GPUs.", f"sum(vllm_install_gpu_power_watts{{{GPU}}})", "watt"),
                stat(
                    "Hottest",
                    "The warmest GPU.",
                    f"max(vllm_install_gpu_temperature_celsius{{{GPU}}})",
                    "celsius",
                    (None, GREEN),
                    (80, ORANGE),
                    (90, RED),
                ),
                stat(
                    "Faults",
                    "Xid errors that the driver reported in the last day.",
                    count("vllm_install_gpu_xid_total", GPU, "[1d]"),
                    "short",
                    *BAD_FROM_ONE,
                ),
                Panel(
                    "GPUs",
                    "Each GPU of the host.",
                    (Query(f"vllm_install_gpu_info{{{GPU}}}"),),
                    "table",
                    width=12,
                    height=6,
                    columns=("gpu", "name", "driver", "uuid"),
                ),
                Panel(
                    "Used by",
                    "The services that each GPU was given to.",
                    (Query(f"vllm_install_gpu_used_by{{{GPU}}}"),),
                    "table",
                    width=12,
                    height=6,
                    columns=("gpu", "service", "uuid"),
                ),
            ),
        ),
        Row(
            "Work",
            (
                share(
                    "In use",
                    "The share of time in which something ran.",
                    Query(f"vllm_install_gpu_utilization_ratio{{{GPU}}}", OF_GPU),
                ),
                share(
                    "Memory",
                    "The share of each GPU's memory that is in use.",
                    Query(f"vllm_install_gpu_memory_used_bytes{{{GPU}}} / vllm_install_gpu_memory_total_bytes", OF_GPU),
                ),
                graph(
                    "Clocks",
                    "Of the processors, and of the memory.",
                    Query(f"vllm_install_gpu_clock_hertz{{{GPU}}}", "{{gpu}} {{clock}}"),
                    unit="hertz",
                ),
                graph(
                    "Power",
                    "Drawn, and the most that may be.",
                    Query(f"vllm_install_gpu_power_watts{{{GPU}}}", OF_GPU),
                    Query(f"max(vllm_install_gpu_power_limit_watts{{{GPU}}})", "limit"),
                    unit="watt",
                ),
                graph(
                    "Energy for each token made",
                    "All that a service's GPUs need, over the tokens of its answers.",
                    Query(
                        ENERGY_OF_TOKEN,
                        "{{service}}",
                    ),
                    unit="joule",
                ),
                graph(
                    "Temperature",
                    "Of the processors, and of the memory.",
                    Query(f"vllm_install_gpu_temperature_celsius{{{GPU}}}", OF_GPU),
                    Query(f"vllm_install_gpu_memory_temperature_celsius{{{GPU}}}", "{{gpu}} memory"),
                    unit="celsius",
                ),
            ),
        ),
        Row(
            "Well or not",
            (
                Panel(
                    "Slowed down",
                    "Why a GPU runs slower than it could; idle is no reason to worry.",
                    (Query(f"max by (reason) (vllm_install_gpu_throttled{{{GPU}}})", "{{reason}}"),),
                    "state-timeline",
                    width=12,
                    height=6,
                    states=((0, "no", GREEN), (1, "yes", ORANGE)),
                ),
                graph(
                    "Faults",
                    "Xid errors that the driver reported in the last hour.",
                    Query(f"sum by (gpu) (increase(vllm_install_gpu_xid_total{{{GPU}}}[1h]))", OF_GPU),
                    width=12,
                    height=6,
                ),
                graph(
                    "Errors of the memory",
                    "In the last hour; the uncorrected ones cost a request.",
                    Query(f"increase(vllm_install_gpu_ecc_errors_total{{{GPU}}}[1h])", "{{gpu}} {{kind}}"),
                ),
                graph(
                    "Rows replaced",
                    "Pending: the GPU wants a reset. Failed: it wants to be replaced.",
                    Query(f"vllm_install_gpu_remapped_rows{{{GPU}}}", "{{gpu}} {{kind}}"),
                ),
                graph(
                    "Links",
                    "Repeated transfers on the PCIe bus and errors of NVLinks, in the last hour.",
                    Query(f"increase(vllm_install_gpu_pcie_replays_total{{{GPU}}}[1h])", "{{gpu}} PCIe"),
                    Query(f"increase(vllm_install_gpu_nvlink_errors_total{{{GPU}}}[1h])", "{{gpu}} NVLink"),
                ),
            ),
        ),
    ),
)

BOARDS = {"host": HOST, "service": ONE_SERVICE, "keys": KEYS, "gpus": GPUS}
