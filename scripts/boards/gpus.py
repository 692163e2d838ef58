"""The GPUs: whose they are, how busy, hot and full, and which errors they had."""

from __future__ import annotations

from scripts.boards.words import (
    BAD_FROM_ONE,
    GPU,
    GREEN,
    HOSTS,
    ON_HOST,
    ORANGE,
    RATE,
    RED,
    Board,
    Panel,
    Query,
    Row,
    Variable,
    count,
    graph,
    rate,
    share,
    stat,
)

OF_GPU = "{{host}} {{gpu}}"
ANY = f'job="vllm-install", {ON_HOST}'
USED = "* on (uuid) group_right () vllm_install_gpu_used_by"
ENERGY = f"sum by (service) (rate(vllm_install_gpu_energy_joules_total{{{GPU}}}{RATE}) {USED})"
ENERGY_OF_TOKEN = f"{ENERGY} / on (service) {rate('vllm:generation_tokens_total', 'service', ANY)}"
GPUS = Board(
    "vllm-install-gpus",
    "vLLM: GPUs",
    "What the GPUs do, what they need for it, and whether they are well.",
    (HOSTS, Variable("gpu", "GPU", f"label_values(vllm_install_gpu_info{{{ON_HOST}}}, uuid)")),
    (
        Row(
            "Now",
            (
                stat("GPUs", "GPUs that the driver names.", f"count(vllm_install_gpu_info{{{GPU}}})"),
                stat(
                    "Lost",
                    "GPUs that a service was given and that are not there.",
                    f"count(vllm_install_gpu_lost{{{ON_HOST}}}) or vector(0)",
                    "short",
                    *BAD_FROM_ONE,
                ),
                stat(
                    "Drivers",
                    "Whether they answered for all GPUs.",
                    f"min(vllm_install_gpus_readable{{{ON_HOST}}})",
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
                    Query(f"vllm_install_gpu_clock_hertz{{{GPU}}}", "{{host}} {{gpu}} {{clock}}"),
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
                    Query(f"vllm_install_gpu_memory_temperature_celsius{{{GPU}}}", "{{host}} {{gpu}} memory"),
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
                    Query(f"sum by (host, gpu) (increase(vllm_install_gpu_xid_total{{{GPU}}}[1h]))", OF_GPU),
                    width=12,
                    height=6,
                ),
                graph(
                    "Errors of the memory",
                    "In the last hour; the uncorrected ones cost a request.",
                    Query(f"increase(vllm_install_gpu_ecc_errors_total{{{GPU}}}[1h])", "{{host}} {{gpu}} {{kind}}"),
                ),
                graph(
                    "Rows replaced",
                    "Pending: the GPU wants a reset. Failed: it wants to be replaced.",
                    Query(f"vllm_install_gpu_remapped_rows{{{GPU}}}", "{{host}} {{gpu}} {{kind}}"),
                ),
                graph(
                    "Links",
                    "Repeated transfers on the PCIe bus and errors of NVLinks, in the last hour.",
                    Query(f"increase(vllm_install_gpu_pcie_replays_total{{{GPU}}}[1h])", "{{host}} {{gpu}} PCIe"),
                    Query(f"increase(vllm_install_gpu_nvlink_errors_total{{{GPU}}}[1h])", "{{host}} {{gpu}} NVLink"),
                ),
            ),
        ),
    ),
)
