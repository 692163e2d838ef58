"""What the user asks for: of several sources which one counts, and how an error names what was typed."""

from __future__ import annotations

import pytest

from installer.base.errors import UsageError
from installer.spec.asked import assigned, load_settings


def test_flags_win_over_environment_over_file_over_defaults() -> None:
    file = {"PORT": "1001", "DRAIN_SECONDS": "1", "MAX_MODEL_LEN": "2048"}
    environment = {"PORT": "1002", "DRAIN_SECONDS": "2", "PATH": "/bin"}
    settings = load_settings("a", file, environment, {"port": "1003"})
    assert (settings.port, settings.drain, settings.max_model_len) == (1003, 2, 2048)
    assert settings.tensor_parallel_size == 1


def test_two_names_for_one_setting_must_agree() -> None:
    assert load_settings("a", {"TP_SIZE": "2", "TENSOR_PARALLEL_SIZE": "2"}, {}, {}).tensor_parallel_size == 2
    with pytest.raises(UsageError, match="TENSOR_PARALLEL_SIZE='1' and TP_SIZE='2' in the environment contradict"):
        load_settings("a", {}, {"TP_SIZE": "2", "TENSOR_PARALLEL_SIZE": "1"}, {})


def test_an_error_names_the_value_and_where_it_stands() -> None:
    with pytest.raises(UsageError, match=r"PORT='x' in /etc/vllm-install/\S+.env: expected a whole number"):
        load_settings("a", {"PORT": "x"}, {}, {})
    with pytest.raises(UsageError, match=r"PORT='x' in the environment"):
        load_settings("a", {}, {"PORT": "x"}, {})
    with pytest.raises(UsageError, match=r"^--port='x': expected"):
        load_settings("a", {}, {}, {"port": "x"})
    for typed in ("port=x", "PORT=x", "--port=x"):
        with pytest.raises(UsageError) as caught:
            assigned([typed])
        assert (
            caught.value.message
            == f"{typed.partition('=')[0]}='x': expected a whole number between 1 and 65535, or auto"
        )
        assert caught.value.hint == "for example: PORT=8000 or --port 8000"
