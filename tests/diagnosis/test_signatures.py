"""The table of what failures look like in a log: every entry by a line as it was really printed."""

from __future__ import annotations

import json
import shlex

import pytest

from installer.diagnosis import signatures
from installer.diagnosis.signatures import Example, Signature, recognise
from scripts import troubleshoot
from tests.kit.commands import check_ours

ENTRIES = signatures.signatures()
EXAMPLES = [(entry, example) for entry in ENTRIES for example in entry.examples]


@pytest.mark.parametrize(("entry", "example"), EXAMPLES, ids=[f"{e.id}-{n}" for n, (e, _) in enumerate(EXAMPLES)])
def test_a_line_is_recognised_as_what_it_is(entry: Signature, example: Example) -> None:
    places = [where for where in entry.where if entry.explain(example.line, "coder")]
    assert places, "recognised nowhere"
    for where in places:
        finding = recognise(example.line, "coder", where)
        assert finding is not None
        assert finding.id == entry.id, "an entry further up takes it"
        assert finding.cause
        assert finding.evidence.startswith(example.line[:300])
        assert not [command for command in finding.commands if "{0}" in command or "{service}" in command]
        check_ours(list(finding.commands))


def test_every_pattern_has_a_line() -> None:
    """A pattern without an example is a guess."""
    without = []
    for entry in ENTRIES:
        for pattern in entry.patterns:
            if not any(pattern.search(example.line) for example in entry.examples):
                without.append(f"{entry.id}: {pattern.pattern}")
    assert without == []


def test_what_a_client_writes_into_the_log_is_no_finding() -> None:
    for line in (
        'INFO:     10.0.0.5:4711 - "GET /CUDA%20out%20of%20memory HTTP/1.1" 404',
        "WARNING 11-21 10:00:00 [vllm_guard.py:210] refused GET '/No space left on device' from 10.0.0.5: no key",
        "(APIServer pid=6515) WARNING 11-21 15:32:00 [system_utils.py:255] Found ulimit of 20000. This can cause fd "
        "limit errors like `OSError: [Errno 24] Too many open files`.",
        "(APIServer pid=7) INFO 11-21 10:00:00 [utils.py:1] non-default args: {'x': 'MemoryError'}",
    ):
        assert recognise(line, "coder") is None


def test_the_program_that_a_traceback_quotes_is_not_what_happened() -> None:
    quoted = "    raise OSError(f\"It looks like the config file at '{file}' is not a valid JSON file.\")"
    said = "OSError: It looks like the config file at '/models/x/config.json' is not a valid JSON file."
    prefix = "(EngineCore pid=28811) ERROR 11-21 15:47:19 [core.py:1510] "
    (finding,) = signatures.explain([quoted, prefix + quoted, prefix + said, said], "coder")
    assert finding.evidence == prefix + said


def test_of_a_failed_compilation_the_reason_is_found_and_not_where_it_was_noticed() -> None:
    """As FlashInfer prints ninja's output: one exception of many lines, each a line of the journal."""
    said = """\
(EngineCore pid=1742) ERROR 11-28 10:00:51 [core.py:1510] RuntimeError: Ninja build failed. Ninja output:
FAILED: sampling/sampling.cuda.o
In file included from /opt/cuda/include/cuda_runtime.h:82,
                 from <command-line>:
/opt/cuda/include/crt/host_config.h:137:2: error: #error -- unsupported GNU version! gcc versions later than 15 are not supported!
  137 | #error -- unsupported GNU version! gcc versions later than 15 are not supported!
      |  ^~~~~
ninja: build stopped: subcommand failed.
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""  # noqa: E501 as it is printed
    (finding,) = signatures.explain(said.splitlines(), "coder")
    assert finding.id == "host-compiler-too-new"
    assert "after version 15" in finding.cause
    assert finding.commands[0] == "sudo vllm-install set CUDA_TOOLKIT=none --service coder"


def test_what_a_log_says_is_one_word_of_a_command() -> None:
    finding = recognise("PermissionError: [Errno 13] Permission denied: '/x; rm -rf $(HOME) \x1b[2J'", "coder")
    assert finding
    assert shlex.split(finding.commands[0]) == ["namei", "-l", "/x; rm -rf $(HOME) \\x1b[2J"]
    assert "\x1b" not in finding.evidence + finding.cause


def test_the_root_cause_comes_first_whatever_the_order_of_the_lines() -> None:
    lines = [
        "vllm-launcher: the engine died of its first request",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.02 GiB.",
        "RuntimeError: CUDA error: out of memory",
    ]
    assert [finding.id for finding in signatures.explain(lines, "coder")] == ["gpu-out-of-memory", "engine-died"]


def test_the_page_for_users_is_made_of_this_table() -> None:
    assert troubleshoot.PAGE.read_text() == troubleshoot.page(), "run: make docs"


GOOD = {
    "id": "a", "where": ["service"], "severity": "fault", "patterns": ["x(.)"], "cause": "c {0}", "commands": ["d"],
    "examples": [{"line": "xy", "source": "s"}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"id": "A b"}, "entry 1"),
        ({"where": ["moon"]}, "where"),
        ({"severity": "bad"}, "severity"),
        ({"patterns": ["("]}, "a: "),
        ({"patterns": []}, "patterns"),
        ({"cause": "c {1}"}, "a: "),
        ({"commands": ["{nosuch}"]}, "nosuch"),
        ({"examples": []}, "no examples"),
        ({"examples": [{"line": "x"}]}, "source"),
        ({"further": 1}, "exactly"),
    ],
)
def test_a_table_with_a_slip_is_refused_by_name(wrong: dict[str, object], says: str) -> None:
    assert signatures.parse(json.dumps([GOOD]))
    with pytest.raises(ValueError, match=says):
        signatures.parse(json.dumps([{**GOOD, **wrong}]))
    with pytest.raises(ValueError, match="twice"):
        signatures.parse(json.dumps([GOOD, GOOD]))
