"""What a hand-written deployment is read as, and what is refused: by systemd's, a shell's, compose's, vLLM's rules."""

from __future__ import annotations

import os
import pwd
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from installer.adoption import old_compose, old_script, old_unit
from installer.adoption.old import LARGEST, Old
from installer.adoption.translate import Adoption, translate
from installer.base.errors import Exit, InstallError, Refused
from installer.base.host import Host
from installer.flow import adopt
from installer.runtime import vllm_flags
from installer.spec.settings import FIELDS
from tests.kit import adapter
from tests.kit.boot.surroundings import REPO
from tests.verbs.test_cli import cli

KEY = "sk-old-5b8d0f3a9c-Xk2QzVwHj7RmTbNp"
FIXTURES = REPO / "tests/fixtures/adopt"
START = "[Service]\nExecStart=/venv/bin/vllm serve org/model"


def unit(tmp_path: Path, text: str, name: str = "llm.service") -> Old:
    (tmp_path / name).write_text(text)
    return adopt.find(str(tmp_path / name), Host(), None)


def script(text: str, environment: Mapping[str, str] | None = None) -> Old:
    return old_script.read(text, Old((), environment or {}), Host())


def compose(tmp_path: Path, text: str, service: str | None = None) -> Old:
    (tmp_path / "compose.yml").write_text(text)
    return adopt.find(str(tmp_path / "compose.yml"), Host(), service)


def adopted(old: Old, *, new_key: bool = False, **wishes: str) -> Adoption:
    return translate(old, "llm", {}, wishes, Host(), new_key=new_key)


def line(words: str, **environment: str) -> Adoption:
    return adopted(script(f"vllm serve org/model --api-key {KEY} {words}", environment))


# systemd's rules


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{START} --port 1 \\\n  # why\n  --dtype auto\n", ("org/model", "--port", "1", "--dtype", "auto")),
        (f"{START} 'a b' \"c d\" e\\x41\\sf\n", ("org/model", "a b", "c d", "eA f")),
        (f"{START} %% %n $$x\n", ("org/model", "%", "llm.service", "$x")),
        (f"{START} ${{A}}z $A $NO\n".replace("[Service]", "[Service]\nEnvironment=A=1 'B=x y'"),
         ("org/model", "1z", "1")),
        ("[Service]\nExecStart=/bin/true\nExecStart=\nExecStart=-/v/vllm serve m\n", ("m",)),
        ("[Service]\nExecStart=@/v/vllm llm serve m\n", ("m",)),
        ("[Service]\nExecStart=/v/python -m vllm.entrypoints.openai.api_server --model m\n", ("--model", "m")),
        ("[Service]\nExecStart=/bin/bash -lc 'cd /x && exec vllm serve m --port 2'\n", ("m", "--port", "2")),
        (f"[Unit]\nExecStart=/v/vllm serve no\n{START}\r\n", ("org/model",)),
    ],
)  # fmt: skip
def test_a_unit_is_read_by_systemds_rules(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    assert unit(tmp_path, text).words == words


def test_a_units_variables_come_from_files_too(tmp_path: Path) -> None:
    (tmp_path / "a.env").write_text(f"# x\nVLLM_API_KEY={KEY}\nPORT='8005'\n")
    text = f"[Service]\nEnvironmentFile=-/nowhere\nEnvironmentFile={tmp_path}/a.env\n{START[10:]} --port ${{PORT}}\n"
    found = adopted(unit(tmp_path, text))
    assert (found.settings.port, found.keys) == (8005, (KEY,))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{START}\nExecStart=/v/vllm serve b\n", "2 ExecStart lines"),
        ("[Service]\nType=simple\n", "no ExecStart"),
        ("[Service]\nExecStart=/usr/sbin/nginx\n", "does not start vLLM"),
        ("[Unit]\nDescription=x\n", "no line of a unit|no \\[Service\\] section|starts vLLM"),
        (f"{START} %H\n", "%H, which only systemd"),
        (f"{START} 'x\n", "unbalanced '"),
        (f"{START} ; /bin/true\n", "several commands"),
        (f"{START}\nnonsense\n", "no line of a unit"),
        (f"{START} \\xzz\n", "an escape that is none"),
        (f"[Service]\nEnvironmentFile=/nowhere/x\n{START[10:]}\n", "/nowhere/x does not exist"),
    ],
)
def test_a_unit_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(Refused, match=words):
        unit(tmp_path, text)


# A shell's rules


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nohup vllm serve m --port 1 > log 2>&1 &", ("m", "--port", "1")),
        ('A=1\nB="x $A"\nvllm serve \'$A\' "$B" ${C:-d $A} ${A:-no}', ("$A", "x 1", "d", "1", "1")),
        ("ARGS='--a 1 --b'\nvllm serve m $ARGS \"$ARGS\"", ("m", "--a", "1", "--b", "--a 1 --b")),
        ("KEY=$(cat key)\nX=`id`\nvllm serve m # $KEY", ("m",)),
        ("cat <<EOF\nvllm serve no\nEOF\nCUDA_VISIBLE_DEVICES=1 vllm \\\n serve m", ("m",)),
        ("if true; then\n exec python3 -m vllm.entrypoints.openai.api_server --model m\nfi", ("--model", "m")),
        ("docker ps | grep x && { vllm serve m; }", ("m",)),
        ('vllm serve m --port 1 "$@"', ("m", "--port", "1")),
        ("vllm serve m ${@} $*", ("m",)),
        ('PATH=$PATH:/x env "PATH=$PATH" $HOME/bin/vllm serve m', ("m",)),
        ('export HF_TOKEN="$(cat token)"\nvllm serve m', ("m",)),
    ],
)
def test_a_script_is_read_and_not_run(text: str, words: tuple[str, ...]) -> None:
    assert script(text).words == words


def test_what_a_script_is_given_stands_where_it_says(tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text('vllm serve m "$@" --b\n')
    text = f"[Service]\nExecStart=/bin/sh -e {tmp_path}/run.sh --a 'two words'\n"
    assert unit(tmp_path, text).words == ("m", "--a", "two words", "--b")
    text = "[Service]\nExecStart=/bin/sh -c 'vllm serve m \"$$@\"' sh --a 1\n"
    assert unit(tmp_path, text).words == ("m", "--a", "1")


def test_all_names_stay_also_where_the_first_is_the_model_s_own() -> None:
    found = line("--served-model-name org/model other")
    assert found.settings.served_model_name == ("org/model", "other")
    assert "the model id is org/model, other, as before" in found.clients


def test_adapters_come_along_by_the_names_that_clients_know(tmp_path: Path) -> None:
    adapter.write(tmp_path / "sql")
    words = f"--enable-lora --max-lora-rank 64 --lora-modules sql={tmp_path}/sql chat=Org/Chat"
    found = line(f'{words} \'{{"name": "b", "path": "Org/B", "base_model_name": "org/model"}}\'')
    assert found.settings.lora == (f"sql={tmp_path}/sql", "chat=Org/Chat", "b=Org/B")
    assert found.settings.vllm_args == ()
    assert not any("run time" in note for note in found.notes)


def test_an_adapter_s_path_in_a_container_is_that_of_the_host_or_refused_in_words(tmp_path: Path) -> None:
    adapter.write(tmp_path / "host/sql")
    text = (
        "services: {llm: {image: 'vllm/vllm-openai', volumes: ['./host:/adapters:ro'], "
        "command: [--model, org/model, --enable-lora, --lora-modules, sql=/adapters/sql%s]}}"
    )
    assert adopted(compose(tmp_path, text % "")).settings.lora == (f"sql={tmp_path}/host/sql",)
    with pytest.raises(Refused, match="the adapter b in /elsewhere/b does not lie on this host") as refused:
        adopted(compose(tmp_path, text % ", b=/elsewhere/b"))
    assert "LORA=b=DIRECTORY" in refused.value.hint


def cached(place: Path, repo: str = "org/model") -> Path:
    (place / f"models--{repo.replace('/', '--')}").mkdir(parents=True)
    return place


@pytest.mark.parametrize("end", ["", "/", "/."])
def test_a_model_that_only_the_container_has_is_not_one_of_that_name_here(tmp_path: Path, end: str) -> None:
    """However its path is written: what lies there on the host is another one."""
    (tmp_path / "mine").mkdir()
    old = Old((f"{tmp_path}/mine{end}",), mounts=(("/models", "/srv/models"),))
    with pytest.raises(Refused, match="does not lie on this host"):
        adopted(old)
    assert adopted(replace(old, mounts=())).settings.model == f"{tmp_path}/mine"


def test_weights_that_the_old_service_fetched_are_found_by_its_own_order(tmp_path: Path) -> None:
    home, named, elsewhere = (cached(tmp_path / name) for name in ("home/.cache/huggingface/hub", "named/hub", "x"))
    assert line("", HOME=f"{tmp_path}/home").caches == (home,)
    assert line("", HF_HOME=f"{tmp_path}/named", HOME=f"{tmp_path}/home").caches == (named,)
    found = line(f"--download-dir {elsewhere}", HF_HUB_CACHE=str(named), HOME=f"{tmp_path}/home")
    assert found.caches == (elsewhere, named, home)
    assert any(f"{elsewhere} stays as it is" in note for note in found.notes)
    assert line("", HF_HOME=f"{tmp_path}/nowhere").caches == ()
    cached(tmp_path / "a/hub", "Org/Sql")
    assert line("--lora-modules sql=Org/Sql", HF_HOME=f"{tmp_path}/a").caches == (tmp_path / "a/hub",)


def test_of_a_container_s_cache_the_place_on_the_host_counts_and_no_other(tmp_path: Path) -> None:
    text = (
        "services: {llm: {image: 'vllm/vllm-openai', command: [--model, org/model],"
        " volumes: ['%s:/root/.cache/huggingface']}}"
    )
    place = cached(tmp_path / "hf/hub")
    assert adopted(compose(tmp_path, text % "./hf")).caches == (place,)
    assert adopted(compose(tmp_path, text % "weights")).caches == (), "a volume's place is docker's own"


def test_of_a_unit_it_is_the_home_of_its_user(tmp_path: Path) -> None:
    assert unit(tmp_path, f"{START}\n").home == "/root"
    assert unit(tmp_path, f"{START}\nUser=daemon\n").home == pwd.getpwnam("daemon").pw_dir


def test_what_clients_loaded_at_run_time_is_said_and_stays_off() -> None:
    found = line("--enable-lora", VLLM_ALLOW_RUNTIME_LORA_UPDATING="True")
    assert any("at run time: none can be" in note for note in found.notes)
    assert (found.settings.lora, found.environment) == ((), ())


@pytest.mark.parametrize("word", ["=x", "a", "{", '{"name": "a"}', "a\u200bb=Org/X", "a b=Org/X"])
def test_adapters_that_cannot_be_meant_are_refused(word: str) -> None:
    with pytest.raises(Refused, match=r"lora-modules|control character"):
        line(f"--lora-modules {shlex.quote(word)}")


def test_variables_before_the_command_are_known_by_env_too() -> None:
    assert script("env CUDA_VISIBLE_DEVICES=1 vllm serve m").environment["CUDA_VISIBLE_DEVICES"] == "1"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("echo hello", "starts vLLM"),
        ("", "starts vLLM"),
        ("vllm serve a\nvllm serve b", "2 commands"),
        ("vllm serve m --api-key $(cat key)", "the output of a command"),
        ("K=`cat key`; vllm serve m --api-key $K", "the output of a command"),
        ("vllm serve $1", "\\$1, which it does not set"),
        ('vllm serve "x$@"', "\\$@, which it does not set"),
        ("env VLLM_API_KEY=$(pass x) vllm serve m", "the output of a command"),
        ("if x; then P=1; fi; vllm serve m --port $P", "under a condition"),
        ("vllm serve m ${A%%b}", "only a shell works out"),
        ("vllm serve 'm", "opening ' has no end"),
        ('vllm serve "m', 'opening " has no end'),
        ("vllm serve ${m", "opening { has no end"),
        ("export VLLM_API_KEY=$(pass x); vllm serve m", "the output of a command"),
    ],
)
def test_a_script_that_only_a_shell_understands_is_refused(text: str, words: str) -> None:
    with pytest.raises(Refused, match=words):
        script(text)


def test_nothing_of_a_script_is_run(tmp_path: Path) -> None:
    script(f"touch {tmp_path}/a; X=$(touch {tmp_path}/b) `touch {tmp_path}/c`\nvllm serve m")
    assert list(tmp_path.iterdir()) == []


def test_a_sourced_file_counts_where_it_exists(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"PORT=8009\nKEY={KEY}\n")
    found_file = "if [ -f .env ]; then\n  set -a; . ./.env; set +a\nfi\n. ./absent\n"
    text = found_file + 'vllm serve o/m --port $PORT --api-key "$KEY"\n'
    (tmp_path / "run.sh").write_text(text)
    found = adopted(adopt.find(str(tmp_path / "run.sh"), Host(), None))
    assert (found.settings.port, found.keys) == (8009, (KEY,))
    assert KEY not in found.redact(f"the key is {KEY}")


def test_a_script_that_sources_itself_ends(tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text("source ./run.sh\nvllm serve m\n")
    with pytest.raises(Refused, match="a file that is itself sourced"):
        adopt.find(str(tmp_path / "run.sh"), Host(), None)


# Compose


def services(text: str) -> str:
    return "services:\n  llm:\n    image: vllm/vllm-openai:v1\n" + text


def test_a_compose_service_is_seen_from_the_host(tmp_path: Path) -> None:
    (tmp_path / "models/m").mkdir(parents=True)
    (tmp_path / ".env").write_text("P=9000\n")
    text = services(
        f"    command: [--model, /models/m, --api-key, {KEY}, --port, '9001']\n"
        "    ports: [{target: 9001, published: '${P}', host_ip: 127.0.0.1}]\n"
        "    volumes: [{type: bind, source: ./models, target: /models}]\n"
        "    deploy: {resources: {reservations: {devices: [{device_ids: ['1', '3']}]}}}\n"
    )
    found = adopted(compose(tmp_path, text))
    assert found.settings.model == str(tmp_path / "models/m")
    assert (found.settings.host, found.settings.port) == ("127.0.0.1", 9000)
    assert found.settings.served_model_name == ("/models/m",), "clients go on asking by the path inside the container"
    assert found.environment == (("CUDA_VISIBLE_DEVICES", "1,3"),)


@pytest.mark.parametrize(
    ("ports", "listens"),
    [("8080:8000", ("0.0.0.0", 8080)), ("127.0.0.1:81:8000/tcp", ("127.0.0.1", 81)), ("8000", ("0.0.0.0", 8000))],
)
def test_published_ports(tmp_path: Path, ports: str, listens: tuple[str, int]) -> None:
    assert compose(tmp_path, services(f"    command: org/m\n    ports: ['{ports}']\n")).listens == listens


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB + "services: *i\n", "unfolds into more"),
        ("services: &a [*a]\n", "unfolds into more"),
        ("a: &a {k: v}\n" + "".join(f"{n}: &{n}\n  <<: [{','.join([f'*{b}'] * 9)}]\n"
                                     for b, n in zip("abcdefgh", "bcdefghi", strict=True)), "unfolds into more"),
        ("[" * 5000, "unfolds into more"),
        ("services: [", "is not YAML"),
        ("services:\n  x: !!python/object/apply:os.system [id]\n", "is not YAML"),
        ("- a\n", "no mapping"),
        ("a: b\n", "no services"),
        ("services:\n  db:\n    image: postgres\n", "no service that runs vLLM"),
        ("services:\n  a: {image: vllm/x}\n  b: {image: vllm/x}\n", "2 services that run vLLM"),
        (services("    command: org/m\n    ports: ['8000-8010:8000']\n"), "a range or no port"),
        (services("    command: --model ${M:?}\n"), "needs M"),
        (services("    command: --model /models/m\n    volumes: ['cache:/models']\n"), "does not lie on this host"),
        (services("    entrypoint: [/bin/sleep]\n"), "does not start vLLM"),
    ],
)  # fmt: skip
def test_a_compose_file_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(Refused, match=words):
        adopted(compose(tmp_path, text))


# vLLM's flags


def test_what_is_not_said_keeps_vllms_meaning() -> None:
    settings = line("").settings
    assert settings.max_model_len is None
    assert settings.gpu_memory_utilization == 0.92
    assert (settings.tool_call_parser, settings.reasoning_parser) == ("none", "none")


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--max-model-len 32k", "max_model_len", 32000),
        ("--max-model-len 32K", "max_model_len", 32768),
        ("--max_model_len=-1", "max_model_len", None),
        ("-tp 2", "tensor_parallel_size", 2),
        ("--port 1 --port 8002", "port", 8002),
        ("--served-model-name a b", "served_model_name", ("a", "b")),
        ("--gpu-memory-util 0.5", "gpu_memory_utilization", 0.5),
        ("--enable-auto-tool-choice --tool-call-parser hermes", "tool_call_parser", "hermes"),
        ("--enforce-eager --max-num-seqs=4", "vllm_args", ("--enforce-eager", "--max-num-seqs=4")),
        ("-O3 --compilation-config.level 3", "vllm_args", ("-O3", "--compilation-config.level", "3")),
        ("--no-enable-prefix-caching", "vllm_args", ("--no-enable-prefix-caching",)),
    ],
)
def test_flags_become_settings(words: str, name: str, value: object) -> None:
    assert getattr(line(words).settings, name) == value


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--trust-remote-code", "TRUST_REMOTE_CODE=MODEL"),
        ("--middleware x.Y", "guard"),
        ("--hf-token hf_abcdefghijk", "HF_TOKEN_PATH"),
        ("--uds /tmp/s --host 0.0.0.0", "TCP"),
        ("--disable-log-requests", "no such flag any more"),
        ("--swap-space 4", "no such flag any more"),
        ("--disable-log-stats", "hang"),
    ],
)
def test_what_is_dropped_is_said_with_the_reason(words: str, reason: str) -> None:
    found = line(words)
    assert any(words.split()[0] in note and reason in note for note in found.notes), found.notes
    assert words.split()[0] not in found.settings.vllm_args


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("--no-such-flag", "has no flag --no-such-flag"),
        ("--max-num-sequences 4", "is --max-num-seqs meant"),
        ("--ssl-certfile a", "TLS_CERT"),
        ("--ssl-ciphers a", "TLS_CERT"),
        ("--headless", "without an API"),
        ("--chat-template /nowhere.jinja", "does not lie on this host"),
        ("--port", "lacks its value"),
        ("--port 99999", "whole number between"),
        ("--host example.org", "host"),
        ("--enforce-eager another", "2 things by their place"),
    ],
)
def test_flags_that_cannot_be_carried_are_refused(words: str, why: str) -> None:
    with pytest.raises(InstallError, match=why) as raised:
        line(words)
    assert raised.value.exit_code in (Exit.USAGE, Exit.REFUSED)
    assert KEY not in raised.value.message + raised.value.hint


def test_a_config_file_counts_less_than_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "v.yaml").write_text(f"port: 8003\nmax-num-seqs: 4\nenforce-eager: true\napi-key: {KEY}\nseed: 1\n")
    found = adopted(script(f"vllm serve org/model --config {tmp_path}/v.yaml --port 8004"))
    assert (found.settings.port, found.keys) == (8004, (KEY,))
    assert found.settings.vllm_args == ("--max-num-seqs", "4", "--enforce-eager", "--seed", "1")


def test_variables_that_come_along_hold_no_secret() -> None:
    found = line("", VLLM_API_KEY=KEY, CUDA_VISIBLE_DEVICES="1", NCCL_DEBUG="INFO", HF_TOKEN="hf_x",
                 VLLM_SECRET_KEY="s", LD_PRELOAD="/x.so", VLLM_SERVER_DEV_MODE="1")  # fmt: skip
    assert dict(found.environment) == {"CUDA_VISIBLE_DEVICES": "1", "NCCL_DEBUG": "INFO"}
    assert "HF_TOKEN, LD_PRELOAD, VLLM_SECRET_KEY, VLLM_SERVER_DEV_MODE" in " ".join(found.notes)


@pytest.mark.parametrize(
    ("named", "gpus"),
    [
        ("GPU-8932f937", ("GPU-8932f937",)), ("MIG-c6d4f1ef", ("MIG-c6d4f1ef",)),
        ("0", ("auto",)), ("GPU-8932f937,1", ("auto",)), ("GPU-8932f937,GPU-5d5ba0d6", ("auto",)),
    ],
)  # fmt: skip
def test_gpus_that_a_variable_names_by_uuid_become_a_setting(named: str, gpus: tuple[str, ...]) -> None:
    """As many as one engine takes; others are named by the variable as before."""
    found = line("", CUDA_VISIBLE_DEVICES=named)
    assert found.settings.gpus == gpus
    assert bool(found.environment) == (gpus == ("auto",))


# Keys


def test_keys_are_taken_over_and_weak_ones_refused() -> None:
    other = KEY[::-1]
    assert adopted(script(f"vllm serve m --api-key {KEY} {other}")).keys == (KEY, other)
    weak = script("vllm serve m --api-key token-abc123")
    with pytest.raises(Refused, match="too weak") as raised:
        adopted(weak)
    assert "--new-key" in raised.value.hint
    assert "token-abc123" not in raised.value.message + raised.value.hint
    assert adopted(weak, new_key=True).keys == ()
    assert "until now everybody was answered" in " ".join(adopted(script("vllm serve m")).clients)


@pytest.mark.parametrize("text", [f"vllm serve m --api-key {KEY}", f"VLLM_API_KEY='{KEY}' vllm serve m"])
def test_a_key_is_masked_wherever_it_stands(text: str) -> None:
    old = script(text)
    found = adopted(old)
    assert KEY not in found.redact(old.shown)
    assert KEY not in repr([getattr(found.settings, name) for name in FIELDS]) + repr((found.notes, found.clients))


# Bad files, by the command line


def test_what_is_no_deployment_is_refused_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(os.urandom(4000) + b"\0\xff")
    (tmp_path / "huge").write_bytes(b"#" * (LARGEST + 2))
    (tmp_path / "escape").write_text("vllm serve m \x1b[31m")
    os.mkfifo(tmp_path / "fifo")
    for name, words in (
        ("binary", "is not text"), ("huge", "larger than 1 MiB"), ("escape", "is not text"),
        ("fifo", "not a regular file"), (".", "is a directory"), ("nothing", "does not exist"),
    ):  # fmt: skip
        ran = cli("adopt", str(tmp_path / name))
        assert (ran.returncode, ran.stdout) == (Exit.REFUSED, ""), ran
        assert words in ran.stderr, ran.stderr
    ran = cli("adopt", "-", "PORT", stdin="vllm serve m")
    assert (ran.returncode, "is not NAME=VALUE" in ran.stderr) == (Exit.USAGE, True)
    ran = cli("adopt", "-", "--json", stdin="echo")
    assert ran.returncode == Exit.REFUSED
    assert '"exit_code": 3' in ran.stderr + ran.stdout


def test_every_fixture_is_read_without_being_told_what_it_is() -> None:
    kinds = {path.name: adopt.find(str(path), Host(), None) for path in FIXTURES.iterdir()}
    assert all(old.words for old in kinds.values())
    assert len(kinds) == 3


def test_the_difference_masks_secrets_and_nothing_else() -> None:
    found = line("--max-num-batched-tokens 8192 --host 192.0.2.7 --seed 8192", HF_TOKEN="abcdefgh", MAX_TOKENS="8192")
    text = (
        "Environment=HF_TOKEN=abcdefgh MAX_TOKENS=8192 INDEX=https://me:pass@mirror.example/simple\n"
        f"ExecStart=vllm serve m --api-key {KEY} --max-num-batched-tokens 8192 --host 192.0.2.7 --tokenizer a/auth\n"
        "--api-key default=sha256:" + "0123456789abcdef" * 4
    )
    assert found.redact(text) == (
        "Environment=HF_TOKEN=[secret] MAX_TOKENS=8192 INDEX=https://[secret]@mirror.example/simple\n"
        "ExecStart=vllm serve m --api-key [secret] --max-num-batched-tokens 8192 --host 192.0.2.7 --tokenizer a/auth\n"
        "--api-key default=sha256:" + "0123456789abcdef" * 4
    )


@pytest.mark.parametrize(
    ("active", "timeout", "said"),
    [
        (
            "active",
            "1min 30s",
            ["llm.service may take 1min 30s to stop"],
        ),
        (
            "active",
            "infinity",
            ["llm.service may take any time to stop"],
        ),
        ("inactive", "1min 30s", []),
    ],
)
def test_how_long_the_old_unit_may_take_to_stop_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, active: str, timeout: str, said: list[str]
) -> None:
    shown = {"UnitFileState": "enabled", "ActiveState": active, "TimeoutStopUSec": timeout}
    monkeypatch.setattr(adopt, "unit_properties", lambda *_: shown)
    old = replace(unit(tmp_path, f"{START}\n"), unit="llm.service", files=(tmp_path / "llm.service",))
    proposal = adopt.propose(old, "other", {}, {}, Host(), new_key=True)
    assert [line.rpartition("; ")[2] for line in proposal.adoption.clients if "to stop" in line] == said


def test_the_readers_know_their_limits() -> None:
    assert old_compose.load_compose("a: 080\nb: 8:30\nc: yes\n", "x") == {"a": "080", "b": "8:30", "c": "yes"}
    assert old_unit.variables("A='b c'\n#x\nexport D=e\n") == {"A": "b c", "D": "e"}
    assert vllm_flags.load_table().is_known("--no-enforce-eager")
