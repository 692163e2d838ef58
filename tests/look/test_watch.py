"""Figures read back from /metrics, the GPU's own account, and the screens made of them, down to 20 columns."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from installer.base.host import Host
from installer.look import load, watch
from installer.look.load import GpuUse, quantile, read_metrics, since
from installer.spec.target import Placed
from installer.units.holding import Holding

METRICS = """
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a b"} 2.0
vllm:num_requests_running{engine="1",model_name="a b"} 1.0
vllm:num_requests_waiting{engine="0",model_name="a b"} 4.0
vllm:kv_cache_usage_perc{engine="0",model_name="a b"} 0.5
vllm:kv_cache_usage_perc{engine="1",model_name="a b"} 0.25
vllm:generation_tokens_total{engine="0",model_name="a b"} 1000.0
vllm:prompt_tokens_total{engine="0",model_name="a b"} 300.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1",model_name="a b"} 10.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="1.0",model_name="a b"} 90.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="a b"} 100.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="a b"} 100.0
vllm:cache_config_info{block_size="128",engine="0",num_gpu_blocks="10"} 1.0
"""


def test_all_engines_are_taken_together() -> None:
    sample = read_metrics(METRICS)
    assert sample
    assert (sample.running, sample.waiting, sample.cache_used) == (3.0, 4.0, 0.375)
    assert (sample.generated, sample.prompted, sample.cache_tokens) == (1000.0, 300.0, 1280)
    assert sample.first_token == {0.1: 10.0, 1.0: 90.0, float("inf"): 100.0}


@given(st.text() | st.integers(0, len(METRICS)).map(lambda at: METRICS[:at] + "}{" + METRICS[at + 3 :]))
def test_garbled_metrics_are_tolerated(text: str) -> None:
    sample = read_metrics(text)
    assert sample is None or quantile(sample.first_token, 0.5) is not ...


def test_vllms_own_figure_of_the_cache_is_taken() -> None:
    hybrid = METRICS.replace('block_size="128"', 'block_size="128",kv_cache_size_tokens="900"')
    sample = read_metrics(hybrid)
    assert sample
    assert sample.cache_tokens == 900


def test_of_several_what_they_have_in_common_is_added_up() -> None:
    one, two = read_metrics(METRICS), read_metrics(METRICS.replace("} 0.5", "} 1.0").replace("_bucket", "_other"))
    assert one
    assert two
    assert load.together([None, one, None]) is one
    assert load.together([None, None]) is None
    both = load.together([one, one])
    assert both
    assert (both.running, both.cache_used, both.cache_tokens, both.generated) == (6.0, 0.375, 2560, 2000.0)
    assert both.first_token == {0.1: 20.0, 1.0: 180.0, float("inf"): 200.0}
    mixed = load.together([one, two])
    assert mixed
    assert (mixed.cache_used, mixed.first_token) == (0.5, {}), "buckets that differ say nothing together"


def test_metrics_without_a_single_figure_are_none() -> None:
    assert read_metrics("<html>502 Bad Gateway</html>") is None


def test_percentiles_lie_within_their_bucket() -> None:
    buckets = {0.1: 10.0, 1.0: 90.0, float("inf"): 100.0}
    assert quantile(buckets, 0.05) == pytest.approx(0.05)
    assert quantile(buckets, 0.5) == pytest.approx(0.1 + 0.9 * 40 / 80)
    assert quantile(buckets, 0.99) == 1.0, "beyond all bounds"
    assert quantile({}, 0.5) is None
    assert quantile({1.0: 0.0}, 0.5) is None


def test_percentiles_are_those_of_the_last_moments() -> None:
    before = {0.1: 10.0, float("inf"): 10.0}
    assert since(before, {0.1: 10.0, float("inf"): 14.0}) == {0.1: 0.0, float("inf"): 4.0}
    assert since(before, before) == before, "nothing came: all there is"
    assert since(before, {0.1: 3.0, float("inf"): 3.0}) == {0.1: 3.0, float("inf"): 3.0}, "it was started anew"


def frame(width_of_model: str = "Qwen/Qwen3-VL-8B-Instruct", holding: Holding | None = None) -> watch.Frame:
    return watch.Frame(
        at=0.0,
        service="qwen3vl",
        active="active (running)",
        stage="serving",
        holding=holding,
        model=width_of_model,
        because=None,
        running=3,
        waiting=4,
        cache_used=0.375,
        tokens_per_second=123.456,
        prompt_tokens_per_second=None,
        first_token={"p50": 0.12, "p90": 1.5, "p99": None},
        gpus=(GpuUse("NVIDIA H100", "GPU-1", 70 << 30, 80 << 30, 97),),
        has_metrics=True,
    )


@pytest.mark.parametrize("columns", [20, 40, 80, 200])
@pytest.mark.parametrize("model", ["Qwen/Qwen3-VL-8B-Instruct", "通义千问/视觉语言模型-八十亿参数-指令版"])
def test_nothing_is_cut_off_on_a_terminal_of_any_width(columns: int, model: str) -> None:
    console = Console(file=io.StringIO(), width=columns, legacy_windows=False)
    console.print(watch.screen(frame(model)))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert max(cell_len(line.rstrip()) for line in text.splitlines()) <= columns
    folded = "".join(text.split())
    said = "3running,4waiting 123.5out,-in p50120ms,p901.5s 37.5%full 97%busy"
    if columns >= 80:
        assert all(piece in folded for piece in said.split())
    letters = {character for character in model if character.isalpha()}
    assert letters <= set(text), "a part of the name is gone"


def test_one_line_for_a_pipe() -> None:
    assert watch.line(frame()) == (
        "1970-01-01T00:00:00Z active running=3 waiting=4 cache=0.375 tokens/s=123.5 "
        "ttft-p50=0.12 ttft-p90=1.5 ttft-p99=- gpu0=70.0GiB,97%"
    )


def test_who_waits_for_a_start_is_shown() -> None:
    held = frame(holding=Holding(12, 8, 120))
    assert ("callers", "12 callers wait, longest 8 s") in watch.rows(held)
    assert " held=12 running=3 " in watch.line(held)
    assert "callers" not in dict(watch.rows(frame()))


def test_what_nvidia_smi_says_of_use(tmp_path: Path) -> None:
    command = tmp_path / "usr/bin/nvidia-smi"
    command.parent.mkdir(parents=True)
    rows = ("GPU-1, 71680, 81920, 97, NVIDIA H100, SXM", "GPU-2, [N/A], [N/A], [N/A], Thor")
    command.write_text("#!/bin/sh\n" + "".join(f"echo '{row}'\n" for row in rows))
    command.chmod(0o755)
    first, second = GpuUse("NVIDIA H100, SXM", "GPU-1", 70 << 30, 80 << 30, 97), GpuUse("Thor", "GPU-2", 0, 0, None)
    assert load.gpus(Host(tmp_path), "cuda", ()) == (first, second)
    gone = Placed("GPU-3", "NVIDIA L4")
    assert load.gpus(Host(tmp_path), "cuda", (gone, Placed("GPU-1", "NVIDIA H100, SXM"))) == (
        GpuUse("NVIDIA L4", "GPU-3", 0, 0, None), first,
    )  # fmt: skip
    assert load.gpus(Host(tmp_path), "cpu", ()) == ()
    command.write_text("#!/bin/sh\necho 'No devices were found'\nexit 6\n")
    assert load.gpus(Host(tmp_path), "cuda", ()) == ()


def test_what_the_amdgpu_driver_says_of_use(tmp_path: Path) -> None:
    device = tmp_path / "sys/class/drm/renderD129/device"
    device.mkdir(parents=True)
    node = tmp_path / "sys/class/kfd/kfd/topology/nodes/2/properties"
    node.parent.mkdir(parents=True)
    node.write_text("simd_count 1216\ngfx_target_version 90402\ndrm_render_minor 129\nunique_id 255\n")
    figures = {"mem_info_vram_total": 64 << 30, "mem_info_vram_used": 1024, "gpu_busy_percent": 5}
    for name, figure in figures.items():
        (device / name).write_text(f"{figure}\n")
    assert load.gpus(Host(tmp_path), "rocm", ()) == (GpuUse("AMD gfx942", "GPU-00000000000000ff", 1024, 64 << 30, 5),)
