"""A setting is one entry in the table of settings: whatever shows, takes or renders it follows from that."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest

from installer.families.vllm.serve import serve_arguments
from installer.flow import fit
from installer.runtime import vllm_flags
from installer.spec.settings import FIELDS, Settings, owned_flags
from tests.kit.boot.surroundings import REPO
from tests.kit.targets import target

ENTRY = """\
    max_num_seqs: str = setting(
        "", values.text, "Requests at once.", "MAX_NUM_SEQS MAX_REQUESTS", "N", flags=("--max-num-seqs",), unsaid="7")
"""
SCRIPT = f"""
import importlib.util, json, sys
sys.path.insert(0, {str(REPO)!r})
from pathlib import Path
from installer.base.assets import PACKAGE

path = PACKAGE / "spec/settings.py"
source = path.read_text()
mark = "    vllm_args: tuple"
assert source.count(mark) == 1
settings = importlib.util.module_from_spec(importlib.util.spec_from_file_location("installer.spec.settings", path))
sys.modules["installer.spec.settings"] = settings
exec(compile(source.replace(mark, {ENTRY!r} + mark), path, "exec"), vars(settings))

from click.testing import CliRunner
from installer.adoption.old import Old
from installer.adoption.translate import translate
from installer.base.errors import UsageError
from installer.base.host import Host
from installer.cli import cli
from installer.families.vllm.serve import serve_arguments
from installer.flow import fit
from installer.spec import asked, settings_file
from scripts.reference import reference
from tests.kit.targets import target

one = asked.load_settings("x", {{}}, {{"MAX_REQUESTS": "8"}}, {{}})
try:
    asked.load_settings("x", {{}}, {{}}, {{"vllm_args": "--max-num-seq 9"}})
except UsageError as error:
    refused = error.message
json.dump({{
    "help": [CliRunner().invoke(cli, [verb, "--help"]).output for verb in ("deploy", "plan", "set")],
    "file": settings_file.wanted(None, one, Path("/x.env")),
    "reference": reference(),
    "unit": serve_arguments(target(one)),
    "refused": refused,
    "adopted": [translate(Old(("org/model", *words)), "x", {{}}, {{}}, Host(), new_key=False).settings.max_num_seqs
                for words in (("--max-num-seqs", "5"), ())],
    "typed": asked.assigned(["max-num-seqs=3"]),
    "memory": fit._rest(target(one)) == fit._rest(target(settings.Settings())),
}}, sys.stdout)
"""


def test_an_entry_is_all_that_a_new_setting_needs() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for help in found["help"]:
        assert "--max-num-seqs N" in help
        assert "Requests at once." in help
    assert "\n# Requests at once.\nMAX_NUM_SEQS=8\n" in found["file"]
    assert "`MAX_NUM_SEQS`, `MAX_REQUESTS` | `--max-num-seqs` |" in found["reference"]
    assert found["unit"][found["unit"].index("--max-num-seqs") + 1] == "8"
    assert "--max-num-seq is set by vllm-install itself (use --max-num-seqs)" in found["refused"]
    assert found["adopted"] == ["5", "7"]
    assert found["typed"] == {"max_num_seqs": "3"}
    assert not found["memory"]


def test_no_flag_of_a_unit_can_be_given_a_second_time() -> None:
    """But those that only stand there because the user gave none, which cuda.py looks after."""
    everything = dataclasses.replace(
        Settings(), trust_remote_code=(Settings.model,), allowed_media_domains=("a.example",)
    )
    made = target(everything, kind="cpu")
    made = dataclasses.replace(made, profile=dataclasses.replace(made.profile, reasoning_parser="qwen3"))
    given = vllm_flags.given(serve_arguments(made))
    assert given.keys() <= owned_flags().keys()
    assert given.keys() >= {"--port", "--reasoning-parser", "--enable-auto-tool-choice", "--trust-remote-code"}


@pytest.mark.parametrize("attribute", FIELDS)
def test_the_flags_of_the_table_are_vllms(attribute: str) -> None:
    assert all(vllm_flags.load_table().is_known(flag) for flag in FIELDS[attribute].flags)


def test_what_the_last_start_reported_counts_if_only_these_differ() -> None:
    other = dataclasses.replace(
        Settings(), max_model_len=None, gpu_memory_utilization=0.5, gpus=("0",), host="::1", port=1, drain=0, hold=0
    )
    assert fit._rest(target(other)) == fit._rest(target())
    assert fit._rest(target(dataclasses.replace(Settings(), vllm_args=("--enforce-eager",)))) != fit._rest(target())
