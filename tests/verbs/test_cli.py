"""The real command line, as a process: what it says, where, and how it exits. Nothing here changes the host."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from installer import __version__
from installer.base.errors import Exit
from installer.spec.settings import FIELDS
from tests.kit.boot.surroundings import REPO

SETTINGS = Path("/etc/vllm-install")
VERBS = ("deploy", "plan", "uninstall", "status", "list", "logs", "models", "completion")
UNKNOWN = "no-such-service"


ENVIRONMENT = {"PATH": os.environ["PATH"], "HOME": "/root", "LC_ALL": "C.UTF-8", "PYTHONPATH": str(REPO)}


def cli(*args: str, env: dict[str, str] | None = None, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """A process of its own, and a start of its own where its surroundings are."""
    command = [sys.executable, "-m", "installer", *args]
    if env or stdin:
        ran = subprocess.run(
            command,
            capture_output=True,
            text=True,
            input=stdin,
            env=ENVIRONMENT | (env or {}),
            check=False,
            timeout=300,
        )
    else:
        ran = subprocess.CompletedProcess(command, *answer(args))
    assert "Traceback" not in ran.stderr, ran.stderr
    return ran


def answer(args: tuple[str, ...]) -> tuple[int, str, str]:
    process = loaded()
    assert process.stdin
    assert process.stdout
    print(json.dumps(args), file=process.stdin, flush=True)
    code, out, err = json.loads(process.stdout.readline())
    return code, out, err


@functools.cache
def loaded() -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.kit.below", "/"]
    return subprocess.Popen(command, env=ENVIRONMENT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def refused(*args: str, env: dict[str, str] | None = None, stdin: str = "") -> str:
    """What a usage error says: exit 2, words on stderr, nothing on stdout."""
    ran = cli(*args, env=env, stdin=stdin)
    assert (ran.returncode, ran.stdout) == (Exit.USAGE, ""), ran
    return ran.stderr


# Finding one's way


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_lists_every_verb_with_a_line(flag: str) -> None:
    shown = cli(flag)
    assert (shown.returncode, shown.stderr) == (0, "")
    for verb in VERBS:
        assert any(line.split()[:1] == [verb] and len(line.split()) > 3 for line in shown.stdout.splitlines()), verb


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str) -> None:
    shown = cli(verb, "-h")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith(f"Usage: vllm-install {verb}")


def test_without_a_verb_it_says_what_to_do_next() -> None:
    ran = cli()
    assert (ran.returncode, ran.stderr) == (Exit.DONE, "")
    assert "  vllm-install --help" in ran.stdout.splitlines()


def test_the_version_is_the_package_s() -> None:
    assert cli("--version").stdout == f"vllm-install, version {__version__}\n"


def test_the_installed_command_is_the_same() -> None:
    command = Path(sys.executable).parent / "vllm-install"
    shown = subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout
    assert shown == cli("--version").stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    shown = cli("completion", shell)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "_VLLM_INSTALL_COMPLETE" in shown.stdout


@pytest.mark.parametrize(
    ("option", "begun", "offered"),
    [
        ("--tool-call-parser", "llama4_j", "llama4_json"),
        ("--reasoning-parser", "qw", "qwen3"),
        ("--reasoning-parser", "non", "none"),
    ],
)
def test_a_parser_is_completed(option: str, begun: str, offered: str) -> None:
    from click.shell_completion import ShellComplete

    from installer.cli import cli as group

    completion = ShellComplete(group, {}, "vllm-install", "_VLLM_INSTALL_COMPLETE")
    assert [item.value for item in completion.get_completions(["deploy", option], begun)] == [offered]


def test_the_completion_script_is_valid_bash(tmp_path: Path) -> None:
    script = tmp_path / "completion"
    script.write_text(cli("completion", "bash").stdout)
    subprocess.run(["bash", "-n", script], check=True)


def test_completion_completes() -> None:
    asked = {"_VLLM_INSTALL_COMPLETE": "bash_complete", "COMP_WORDS": "vllm-install sta", "COMP_CWORD": "1"}
    assert cli(env=asked).stdout == "plain,status\n"


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("--help",), Exit.DONE),
        (("deploy", "--help"), Exit.DONE),
        (("completion", "bash"), Exit.DONE),
        (("monitor", "status"), Exit.DONE),
        (("models", "recommend"), Exit.DONE),
        (("status", UNKNOWN, "--json"), Exit.REFUSED),
        (("no-such-verb",), Exit.USAGE),
    ],
)
def test_who_reads_no_further_is_no_fault(args: tuple[str, ...], code: Exit) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    command = [sys.executable, "-m", "installer", *args]
    with os.fdopen(writes, "w") as closed:
        ran = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, env=ENVIRONMENT, check=False)
        both = subprocess.run(command, stdout=closed, stderr=closed, env=ENVIRONMENT, check=False)
    assert ran.returncode == code
    assert both.returncode == (Exit.INTERRUPTED if code == Exit.DONE else code), "what it did may not be done"
    assert b"Traceback" not in ran.stderr
    assert b"BrokenPipe" not in ran.stderr


# Usage errors


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["no-such-verb"], "No such command"),
        (["status", "--no-such-option"], "No such option"),
        (["status", "one", "--service", "two"], "two services are named: one and two"),
        (["keys", "one", "--service", "two"], "two services are named: one and two"),
        (["logs", "one", "--service", "two"], "two services are named: one and two"),
        (["test", "one", "--service", "two"], "two services are named: one and two"),
        (["set", "one", "--service", "two", "PORT=1"], "two services are named: one and two"),
        (["restart", "coder"], "help: sudo systemctl restart coder"),
        (["stop"], "help: sudo systemctl stop qwen3vl"),
        (["deploy", "coder"], "a service is named with --service coder"),
        (["deploy", "PORT=8001"], "a setting is given by its option: --port 8001"),
        (["plan", "TLS_CERT=/a b"], "a setting is given by its option: --tls-cert '/a b'"),
        (["plan", "OFFLINE=no"], "a setting is given by its option: --offline/--online"),
        (["plan", "VLLM_ARGS=--seed 1"], "a setting is given by its option: -- --seed 1"),
        (["deploy", "PROT=8001"], "'PROT' is not a setting; did you mean PORT?"),
        (["keys", "revok", "x"], "No such command 'revok'."),
        (["hosts", "dran", "gpu2"], "No such command 'dran'."),
        (["bench", "hsitory"], "No such command 'hsitory'."),
        (["set"], "nothing is to be set"),
        (["set", "--port", "8001", "PORT=8001"], "PORT is given twice"),
        (["set", "PORT=8001", "PORT=8002"], "PORT is given twice"),
        (["set", "GPU_MEMORY_UTIL=0.5", "gpu-memory-utilization=0.6"], "gpu-memory-utilization is given twice"),
        (["set", "port=abc"], "error: port='abc': expected a whole number"),
        (["set", "--port", "abc"], "--port='abc': expected a whole number"),
        (["set", "--max-num-seqs", "3"], "give it after --, as in: -- --max-num-seqs"),
        (["deploy", "--enforce-eager"], "--enforce-eager is a flag of vLLM's own"),
        (["set", "--no-such-option"], "No such option"),
        (["set-apikey", "-"], "the API key is empty"),
        (["set-context", "abc"], "set-context 'abc': expected a number of tokens"),
        (["set-context", "0"], "a context is between 256 and 16777216 tokens"),
        (["set-apikey", "--name", "a" * 33], "use up to 32 lower-case letters, digits, - and _"),
        (["monitor", "logs", "--off", "--to", "loki", "http://x"], "--off ends it: it goes with no --to and no URL"),
        (["monitor", "logs", "--off", "http://x"], "--off ends it: it goes with no --to and no URL"),
        (["monitor", "logs", "--to", "loki"], "--to and a URL go together"),
        (["deploy", "--all", "--", "--seed", "1"], "VLLM_ARGS is for one service"),
        (["upgrade", "--soak", "a while"], "'a while' is not a duration"),
        (["upgrade", "--margin", "5"], "--margin and --concurrency are for --bench"),
        (["upgrade", "--bench", "--margin", "x%"], "'x%' is no share from 0 to 100 percent"),
        (["upgrade", "--bench", "--margin", "101%"], "'101%' is no share from 0 to 100 percent"),
        (["upgrade", "--bench", "--concurrency", "0"], "'0' is no list of how many ask at once"),
        (["set", "PORT=1", "--soak", "9s"], "9s is no time to watch a change for"),
        (["set-context", "1k", "--soak", "15d"], "take between 10 seconds and 14 days, such as 30m"),
        (["soak", "one", "--service", "two"], "two services are named: one and two"),
        (["test", "--model", "m", "--gpus", "many"], "--gpus='many': expected a whole number"),
        (["test", "--model", "m", "--max-len", "x"], "--max-len='x': expected a number of tokens"),
        (["completion", "tcsh"], "tcsh"),
        (["plan", "--port"], "--port"),
        (["plan", "--port", "http"], "--port='http': expected a whole number between 1 and 65535"),
        (["plan", "--context", "16"], "a context of 16 tokens is too small to chat in"),
        (["plan", "--context", "64x"], "expected a number of tokens such as 1024, 32k or 256K, or auto"),
        (["plan", "--model", "a b"], "expected a hub id"),
        (["plan", "--vllm-version", "0.1.0"], "the oldest vLLM"),
        (["plan", "--engine", "tpu"], "expected auto, cuda, "),
        (["plan", "--", "--api-key", "x"], "--api-key is set by vllm-install itself (use set-apikey)"),
        (["plan", "--", "--tool-call-parser", "hermes"], "use --tool-call-parser"),
        (["plan", "--", "--enable-auto"], "use --tool-call-parser"),
        (["plan", "--tool-call-parser", "hermse"], "did you mean hermes"),
        (["plan", "--reasoning-parser", "qwen"], "did you mean qwen3"),
        (["plan", "--", "serve"], "expected a vLLM flag, found 'serve'"),
        (["plan", "--", "--typo", "1"], "has no flag --typo"),
        (["set", "VLLM_ARGS=serve"], "expected a vLLM flag, found 'serve'"),
        (["plan", "--index-url", "https://me:secret@mirror/simple"], "credentials do not belong"),
        (["deploy", "--port", "0"], "--port='0'"),
        (["deploy", "--bundle", "/x", "--resolve"], "--resolve asks for other packages than --bundle"),
        (["deploy", "--host", "here"], "expected an IPv4 or IPv6 address, or localhost"),
        (["plan", "--gpu-memory-utilization", "much"], "expected a fraction of the GPU's memory between 0.05 and 1.0"),
        (["doctor", "--report", "/no/such/place/report.tar.gz"], "there is no directory /no/such/place"),
    ],
)
def test_what_cannot_be_meant_is_said_in_words(args: list[str], words: str) -> None:
    assert words in refused(*args)


@pytest.mark.parametrize("name", ["/etc/passwd", "", "a b", "A", "x\ny", "-", "a;reboot", "vllm-install"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    assert "cannot be a service name" in refused("plan", "--service", name)


@pytest.mark.parametrize("verb", ["deploy", "plan", "uninstall", "status", "logs"])
def test_a_path_in_place_of_a_name_is_refused_by_every_verb(verb: str) -> None:
    assert "cannot be a service name" in refused(verb, "--service", "../../etc/passwd")


@pytest.mark.parametrize("option", [about.option for about in FIELDS.values() if about.metavar])
def test_a_line_break_is_refused_in_every_setting(option: str) -> None:
    said = refused("plan", option, "/x\nExecStartPre=/bin/evil")
    assert "\nExecStartPre" not in said


def test_a_line_break_is_refused_in_vllm_flags_and_in_the_environment() -> None:
    assert "line breaks" in refused("plan", "--", "--flag", "a\nb")
    assert "MODEL_REVISION" in refused("plan", env={"MODEL_REVISION": "a\nb"})


# The key


@pytest.mark.parametrize(
    ("text", "words"),
    [("short", "too weak"), ("", "API key"), ("a key with spaces that is long", "without spaces"), ("ü" * 30, "ASCII")],
)
def test_a_bad_key_is_refused_and_never_shown(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(text + "\n")
    for said in (refused("plan", "--api-key-file", str(file)), refused("plan", "--api-key-file", "-", stdin=text)):
        assert words in said
        assert not text or text not in said


def test_a_key_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for file in (tmp_path / "absent", tmp_path, tmp_path / "binary"):
        assert str(file) in refused("plan", "--api-key-file", str(file))


# Services

WITH_A_WORD = (
    ("status",), ("doctor",), ("keys",), ("uninstall", "--dry-run"), ("eject", "--dry-run"), ("rollback", "--dry-run"),
    ("upgrade", "--dry-run"), ("test",), ("client-config", "--format", "env"),
)  # fmt: skip


@pytest.mark.parametrize("verb", WITH_A_WORD, ids=" ".join)
def test_a_service_is_named_as_systemctl_has_it(verb: tuple[str, ...]) -> None:
    for words in ((verb[0], UNKNOWN, *verb[1:]), (*verb, UNKNOWN), (*verb, f"{UNKNOWN}.service")):
        assert f"manages no service {UNKNOWN} on this host" in cli(*words).stderr


# Services that are not there


@pytest.mark.parametrize("verb", [("status",), ("uninstall", "--yes"), ("uninstall", "--dry-run")])
def test_an_unknown_service_is_refused(verb: tuple[str, ...]) -> None:
    ran = cli(*verb, "--service", UNKNOWN)
    assert (ran.returncode, ran.stdout) == (Exit.REFUSED, "")
    assert f"error: vllm-install manages no service {UNKNOWN} on this host" in ran.stderr
    assert "help: services it manages:" in ran.stderr


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("status", "--service", UNKNOWN), Exit.REFUSED),
        (("uninstall", "--yes", "--service", UNKNOWN), Exit.REFUSED),
        (("plan", "--port", "x"), Exit.USAGE),
        (("plan", "--no-such-option"), Exit.USAGE),
        (("status", "--service", "../x"), Exit.USAGE),
    ],
)
def test_an_error_is_data_where_data_was_asked_for(args: tuple[str, ...], code: Exit) -> None:
    ran = cli(*args, "--json")
    assert (ran.returncode, ran.stderr) == (code, "")
    error = json.loads(ran.stdout)["error"]
    assert error["exit_code"] == code
    assert error["message"]
    assert set(error) == {"message", "hint", "exit_code"}


def test_json_among_the_vllm_flags_is_not_ours() -> None:
    assert "error: " in refused("plan", "--port", "x", "--", "--json")


def test_listing_is_valid_json_and_plain_without_services() -> None:
    assert isinstance(json.loads(cli("list", "--json").stdout), list)
    assert cli("list").returncode == 0


# The settings file


@pytest.fixture
def settings_file() -> Iterator[Path]:
    """A settings file where the tool looks for it, of a service that exists nowhere."""
    made = not SETTINGS.exists()
    SETTINGS.mkdir(exist_ok=True)
    path = SETTINGS / f"{UNKNOWN}.env"
    yield path
    path.unlink(missing_ok=True)
    if made:
        SETTINGS.rmdir()


@pytest.mark.root
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"PORT=8000\nthis is no setting\n", "line 2: 'this is no setting' is not NAME=VALUE"),
        (b"\x7fELF\x01\x02\x00\xff\xfe", "is not NAME=VALUE"),
        (b"PORT=8000\n\nPORT\n", "line 3: 'PORT' is not NAME=VALUE"),
        (b"MODEL_NAME='unclosed\n", "is not NAME=VALUE"),
        (b"PORT=none\n", "PORT='none' in /etc/vllm-install/"),
        (b"SERVED_MODEL_NAME='a\nb'\n", "line breaks"),
        (b"MODEL_REVISION=caf\xe9\n", "MODEL_REVISION="),
        (b"MODEL_NAME=a\nMODEL_PATH=/b\n", "contradict each other"),
        (b"VLLM_ARGS=--api-key=x\n", "is set by vllm-install itself"),
    ],
)
def test_a_settings_file_with_garbage_is_refused_by_line(settings_file: Path, text: bytes, words: str) -> None:
    settings_file.write_bytes(text)
    assert words in refused("plan", "--service", UNKNOWN)
    assert words in refused("deploy", "--service", UNKNOWN)
    assert settings_file.read_bytes() == text


@pytest.mark.root
def test_an_unknown_variable_is_warned_about(settings_file: Path) -> None:
    settings_file.write_text("PROT=1\nPORT=x\n")
    assert "PROT is not a setting; did you mean PORT?" in refused("plan", "--service", UNKNOWN)


@pytest.mark.root
def test_a_directory_in_place_of_the_settings_file_is_named(settings_file: Path) -> None:
    settings_file.mkdir()
    try:
        ran = cli("plan", "--service", UNKNOWN)
    finally:
        settings_file.rmdir()
    assert ran.returncode == Exit.REFUSED
    assert str(settings_file) in ran.stderr


# Names that no file system, no hub and no unit of ours allows


@pytest.mark.parametrize(
    "args",
    [
        ("plan", "--service", "vllm-nvidia-nodes"),
        ("uninstall", "--service", "vllm-install-test-1"),
        ("plan", "--model", "o/" + "x" * 300),
        ("plan", "--model", "/" + "x" * 300),
        ("plan", "--served-model-name", "x" * 300),
        ("plan", "--python", "/" + "x/" * 3000),
        ("bundle", "show", "x" * 300),
        ("adopt", "x" * 300 + "/serve.sh"),
    ],
)
def test_a_name_that_cannot_be_is_a_usage_error(args: tuple[str, ...]) -> None:
    assert "error: " in refused(*args)


def test_a_compose_service_without_a_command_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "compose.yml").write_text("services:\n  llm:\n    image: vllm/vllm-openai:v0.32.0\n")
    ran = cli("adopt", str(tmp_path / "compose.yml"))
    assert ran.returncode in (Exit.USAGE, Exit.REFUSED)
    assert "model" in ran.stderr


def test_what_is_for_one_service_is_not_said_to_all_of_them() -> None:
    for words in (("--port", "8001"), ("--service", "qwen3vl"), ("--bundle", "x"), ("--", "--seed", "1")):
        ran = cli("deploy", "--all", *words)
        assert (ran.returncode, "for one service" in ran.stderr) == (2, True), ran.stderr
