"""The table of settings: every value is understood or refused in words."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from installer.base.errors import Exit, UsageError
from installer.spec import values
from installer.spec.asked import assigned, load_settings
from installer.spec.settings import FIELDS, NAMES, Settings, check_service, of_text, owned_flags, to_text
from tests.kit.samples import UNGUARDED, any_settings


def from_flags(**flags: str) -> Settings:
    return load_settings("qwen3vl", {}, {}, flags)


def refusal(**flags: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        from_flags(**flags)
    assert caught.value.exit_code == Exit.USAGE
    return caught.value


# By default, and by their names


def test_the_defaults_are_those_of_the_systems_it_replaces() -> None:
    settings = load_settings("qwen3vl", {}, {}, {})
    assert settings == Settings()
    assert settings.model == "Qwen/Qwen3-VL-8B-Instruct"
    assert settings.max_model_len == 1024
    assert settings.gpu_memory_utilization == 0.95
    assert settings.tensor_parallel_size == 1
    assert settings.port == 8000


@pytest.mark.parametrize(
    ("name", "value", "attribute", "meant"),
    [
        ("MODEL_NAME", "Qwen/Qwen3-8B", "model", "Qwen/Qwen3-8B"),
        ("MODEL_PATH", "/models/qwen", "model", "/models/qwen"),
        ("MAX_MODEL_LEN", "4096", "max_model_len", 4096),
        ("GPU_MEMORY_UTILIZATION", "0.5", "gpu_memory_utilization", 0.5),
        ("GPU_MEMORY_UTIL", "0.6", "gpu_memory_utilization", 0.6),
        ("TENSOR_PARALLEL_SIZE", "2", "tensor_parallel_size", 2),
        ("TP_SIZE", "4", "tensor_parallel_size", 4),
        ("PORT", "80", "port", 80),
    ],
)
def test_the_old_names_are_understood(name: str, value: str, attribute: str, meant: object) -> None:
    assert getattr(load_settings("a", {name: value}, {}, {}), attribute) == meant
    assert getattr(load_settings("a", {}, {name: value}, {}), attribute) == meant


def test_no_name_stands_for_two_settings() -> None:
    assert len(NAMES) == sum(len(about.names) for about in FIELDS.values())


# What each value may be


@pytest.mark.parametrize(
    ("text", "gpus"),
    [
        ("auto", ("auto",)),
        ("", ("auto",)),
        ("0", ("0",)),
        (" 0, 2 ", ("0", "2")),
        ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6",)),
        ("MIG-GPU-8932f937/1/2 3B:00.0 0000:18:00.0", ("MIG-GPU-8932f937/1/2", "3B:00.0", "0000:18:00.0")),
    ],
)
def test_gpus_are_named_by_index_address_or_uuid(text: str, gpus: tuple[str, ...]) -> None:
    assert from_flags(gpus=text).gpus == gpus
    assert from_flags(gpus=to_text("gpus", gpus)).gpus == gpus


def test_a_port_may_be_left_to_us() -> None:
    assert from_flags(port="auto").port == 0
    assert to_text("port", 0) == "auto"


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("1024", 1024),
        ("32k", 32768),
        ("256K", 262144),
        (" 16 ", 16),
        ("16384K", 1 << 24),
        ("auto", None),
        ("AUTO", None),
    ],
)
def test_context(text: str, tokens: int | None) -> None:
    assert from_flags(max_model_len=text).max_model_len == tokens


@pytest.mark.parametrize("version", ["0.25.1", "0.32.0", "0.32.0.post1", "0.33.0rc2"])
def test_a_version_may_be_a_later_or_an_earlier_build_of_it(version: str) -> None:
    assert from_flags(vllm_version=version).vllm_version == version


GARBAGE = {
    "model": [
        "",
        " ",
        "a b",
        "../../../etc\n",
        "builtin:huge",
        "a//b",
        "/x\ny",
        "-rf",
        "a/-b",
        "x;y",
        "$HOME",
        "a/../b",
    ],
    "revision": ["a\nb", "a\tb", "a\x00b", "a\u2028b"],
    "models_dir": ["models", "~/models", "./x", "/x\r"],
    "served_model_name": ["a\nb", "\x7fa", "--api-key", "-x", "a\x85b", "a\u2029b"],
    "lora": [
        "a",
        "=Org/X",
        "a=",
        "a=Org/X,a=Org/Y",
        "a b=Org/X",
        "-a=Org/X",
        "a=builtin:tiny",
        "a=Org/X@",
        "a=Org/X@-x",
        "a=/x\ny",
        "{=Org/X",
        "a=..",
        "a=/x,b",
    ],
    "max_model_len": ["", "0", "15", "16777217", "-1", "1.5", "32m", "1e3", "k", "9" * 30, "32k\n1"],
    "gpu_memory_utilization": ["", "0", "0.01", "1.01", "95", "nan", "inf", "-0.5", "half"],
    "tensor_parallel_size": ["", "0", "65", "-1", "1.0", "two"],
    "replicas": ["", "0", "65", "-1", "1.0", "two"],
    "download_connections": ["", "0", "33", "-1", "many"],
    "host": ["", "example.com", "1.2.3", "1.2.3.4.5", "0.0.0.0; rm", "[::1]", "::1\n"],
    "gpus": ["gpu0", "-1", "0;1", "auto,0", "GPU-", "MIG", "3b:00", "1.0", "GPU-1\nx", "0 %n", "²"],
    "port": ["", "0", "65536", "-1", "80a", "8" * 20],
    "drain": ["-1", "3601", "x"],
    "hold": ["", "-1", "3601", "long", "1.5", "2m"],
    "tls": ["", "yes", "SELF", "self\n", "/c.pem"],
    "tls_cert": ["c.pem", "~/c.pem", "/c\nbind :1", "/c\x1b"],
    "tls_key": ["k.pem", "/k\x00", "/k\u2028"],
    "routing": ["", "random", "session\n    server x", "leastconn,session"],
    "fallback_url": [
        "api.example",
        "file:///etc/passwd",
        "ftp://x/v1",
        "https://k@api.example/v1",
        "https://a b/v1",
        "https://a/v1\n",
        "https://a/%2e",
        "https://a/v1?x=1",
        "https://a:x/v1",
        "https:///v1",
        "https://ä/v1",
    ],
    "fallback_key_file": ["key", "/x\ny"],
    "fallback_model": ["-m", "a\nb", "x" * 201],
    "max_queued": ["", "-1", "1000001", "many", "1.5"],
    "ttft": ["2", "0s", "-1s", "1.5s", "2 s", "2m", "soon", "2s\n", "1234567s"],
    "target_ttft": ["2", "0s", "1.5s", "soon", "2s\n"],
    "target_itl": ["50", "0ms", "1.5ms", "2 ms"],
    "scheduling": ["", "lifo", "Priority", "priority\n#"],
    "group_hosts": [
        "10.0.0.1",
        "10.0.0.1,10.0.0.1",
        "gpu1,gpu2",
        "::1,::2",
        "0.0.0.0,10.0.0.1",
        "224.0.0.1,10.0.0.1",
        "10.0.0.1,10.0.0.2\nx",
    ],
    "gateway_hosts": ["gpu1,gpu2", "10.0.0.1", "auto,10.0.0.1", "AUTO", "10.0.0.1,10.0.0.2\nserver x"],
    "group_port": ["", "80", "65535", "x"],
    "group_key_file": ["key", "/x\ny"],
    "allowed_media_domains": ["'unclosed", "a\nb", "--trust-remote-code", "good.example -x", "''", "a/b", "'a b'"],
    "tool_call_parser": ["", "--x", "a b", "hermes\nx", "x" * 65],
    "reasoning_parser": ["", "-", "qwen3;x", "a/b"],
    "engine": ["", "gpu", "CUDA", "cpu\n#"],
    "cuda_toolkit": ["", "yes", "/usr/local/cuda", "wheels\n"],
    "vllm_version": ["", "latest", "0.32", "0.25.0", "0.1.0", "0.32.0 ", "0.32.0;x"][:5],
    "python": ["python3", "bin/python", "~/python", "/usr/bin/py\nthon"],
    "index_url": [
        "pypi.org",
        "ftp://x",
        "https://",
        "http:///",
        "https://u:p@host/simple",
        "https://a b",
        'https://"x',
    ],
    "find_links": ["a\nb", "https://user:secret@host/wheels"],
    "offline": ["maybe", "2"],
    "hf_endpoint": ["hf-mirror", "https://tok@host", "file:///", "https://x\\y"],
    "hf_token_file": ["token", "~/token", "/x\ny"],
    "model_sources": [
        "",
        "hug",
        "hub mirror.example",
        "ftp://x",
        "https://tok@host",
        "modelscope+",
        "modelscope+x",
        "hub\n",
    ],
    "allow_pickle": ["a b/", "'unclosed", "--x", "a\nb"],
    "trust_remote_code": ["*", "../..\n", "a//b", "yes no;"],
    "notify_command": ["tell", "./tell me", "/bin/tell 'half", "/bin/tell\nx"],
    "notify_url": ["alerts.example", "ftp://x", "file:///etc/passwd", "https://me:pass@x/hook", "https://x/a b", "x y"],
    "notify_form": ["xml", ""],
    "runtime": ["", "docker", "Podman"],
    "image": ["Upper/case", "a b", "-v", "x:y:z", "x@sha256:1", "a\nb"],
    "engine_family": ["", "vLLM", "other", "sglang\n"],
    "sglang_version": ["", "latest", "0.5", "0.5.16", "0.5.23;x"],
    "sglang_args": ["'unclosed", "--a\n--b", "--port 1", "--grpc-port 1", "--tokenizer-w=2"],
    "vllm_args": ["'unclosed", "serve", "--enforce-eager\n--port=1", "--port 1", "--api-key=x"],
}


def test_garbage_is_listed_for_every_setting() -> None:
    assert GARBAGE.keys() == FIELDS.keys()


@pytest.mark.parametrize(
    ("attribute", "value"), [(name, value) for name, values in GARBAGE.items() for value in values]
)
def test_what_cannot_be_meant_is_refused_by_name(attribute: str, value: str) -> None:
    if attribute == "model" and value.startswith("../"):
        value = "../x\n/y"
    error = refusal(**{attribute: value})
    typed = {"max_model_len": "--context", "vllm_args": "--"}.get(attribute, "--" + attribute.replace("_", "-"))
    assert error.message.startswith(f"{typed} " if typed == "--" else f"{typed}=")
    assert "\n" not in error.message


def test_a_model_has_as_many_names_as_clients_know_it_by() -> None:
    settings = from_flags(served_model_name="gpt-4 'my model' gpt-4")
    assert settings.served_model_name == ("gpt-4", "my model")
    assert settings.model_id == "gpt-4"
    assert of_text("served_model_name", to_text("served_model_name", settings.served_model_name)) == (
        "gpt-4",
        "my model",
    )
    assert of_text("served_model_name", "it's") == ("it's",), "as it was written when there was but one"


@pytest.mark.parametrize("url", ["api.example", "https://user:secret@api.example/v1"])
def test_an_endpoint_is_asked_for_as_one(url: str) -> None:
    assert "the base of an API without a key in it" in refusal(fallback_url=url).message


def test_a_url_that_is_a_secret_is_given_by_the_path_of_its_file() -> None:
    assert from_flags(notify_url="/etc/vllm-install/hook").notify_url == "/etc/vllm-install/hook"


def test_of_a_flag_that_was_given_twice_the_last_value_counts() -> None:
    assert (values.last(("a", "b")), values.last(())) == ("b", ""), "none is refused as an empty one is"


def test_an_at_sign_in_a_path_is_no_password() -> None:
    assert from_flags(index_url="https://mirror.example/@org/simple/").index_url == "https://mirror.example/@org/simple"


TYPED_URLS = (
    "https://me:geheim@host/x", "https://me:ge/heim@host/x", "https://geheim@host", "htps://me:geheim@host",
    "https://me:my geheim@host/x", "me:geheim@host/x\n", "https://host/a b?key=geheim", "modelscope+x://me:geheim@h",
)  # fmt: skip


@pytest.mark.parametrize("attribute", ["fallback_url", "notify_url", "index_url", "hf_endpoint", "model_sources"])
@pytest.mark.parametrize("value", TYPED_URLS)
def test_no_refusal_repeats_a_password(attribute: str, value: str) -> None:
    """Whatever is wrong with a URL, and wherever it was said."""
    name = FIELDS[attribute].names[0]
    for ask in (
        lambda: load_settings("a", {name: value}, {}, {}), lambda: load_settings("a", {}, {name: value}, {}),
        lambda: from_flags(**{attribute: value}), lambda: assigned([f"{name}={value}"]),
    ):  # fmt: skip
        with pytest.raises(UsageError) as caught:
            ask()
        assert "heim" not in f"{caught.value.message} {caught.value.hint}"


def test_nor_does_one_of_a_word_that_is_no_setting() -> None:
    for typed in ("https://me:geheim@host/x?y=1", "https://me:geheim@host"):
        with pytest.raises(UsageError) as caught:
            assigned([typed])
        assert "geheim" not in caught.value.message


@pytest.mark.parametrize("flag", sorted(owned_flags()))
def test_a_flag_that_we_set_ourselves_cannot_be_given_twice(flag: str) -> None:
    spellings = [flag, f"{flag}=x"]
    if flag.startswith("--"):
        spellings += ["--" + flag[2:].replace("-", "_"), flag[:-1]]  # argparse takes abbreviations too
    for spelling in spellings:
        assert "is set by vllm-install itself" in refusal(vllm_args=f"--enforce-eager {spelling}").message


@pytest.mark.parametrize(
    "words",
    ["-t 2", "-tp=2", "--device-memory-utilization 0.5", "--por 1", "--por=1", "--api-ke x", "--port.x 1",
     "--enforce-eager --max-model-le 8", "--no-enable-auto-tool", "--reasoning-parser qwen3"],
)  # fmt: skip
def test_nor_by_another_of_its_names(words: str) -> None:
    assert "is set by vllm-install itself" in refusal(vllm_args=words).message


@pytest.mark.parametrize(("spelling", "flag"), UNGUARDED)
def test_what_the_launcher_refuses_is_refused_here_already(spelling: str, flag: str) -> None:
    assert f"{flag} cannot be used: " in refusal(vllm_args=spelling).message


def test_what_stands_in_another_flag_s_value_is_none() -> None:
    assert from_flags(vllm_args="--hf-overrides=--port=1 --no-disable-log-stats").vllm_args


@pytest.mark.parametrize(
    "flag", ["--ssl-certfile", "--ssl_keyfile=/k", "--ssl-ca", "--enable-ssl-refresh", "--enable-ss"]
)
def test_tls_is_refused_in_one_sentence(flag: str) -> None:
    assert (
        "the gateway before it speaks TLS: TLS_CERT and TLS_KEY, or TLS=self" in refusal(vllm_args=f"{flag} x").message
    )


@pytest.mark.parametrize(
    "flags",
    ["--enforce-eager", "--max-num-seqs 4", "-O3", "--hf-overrides '{\"a\": [1, 2]}'", "--model-impl vllm", "-q fp8"],
)
def test_any_other_vllm_flag_passes(flags: str) -> None:
    assert from_flags(vllm_args=flags).vllm_args[0].startswith("-")


@pytest.mark.parametrize(
    "name",
    ["", "A", "1a", "-a", "a.b", "a/b", "../x", "/etc/passwd", "a b", "a\n", "a" * 27, "a%n", "a;b", "a$b", "ä", "a@b",
     "a.service", ".", ".."],
)  # fmt: skip
def test_what_cannot_name_a_service_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a service name"):
        check_service(name)


@pytest.mark.parametrize("name", ["vllm-install", "vllm-install-test", "vllm-install-test-17", "vllm-nvidia-nodes"])
def test_a_name_of_our_own_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a service name: it is one of our own"):
        check_service(name)


@pytest.mark.parametrize("name", ["a", "qwen3vl", "a-b_c9", "a" * 26])
def test_service_names(name: str) -> None:
    assert check_service(name) == name
    assert len(f"vllm-{name}") <= 31  # what Linux takes as the name of an account


def test_versions_compare_as_they_were_released() -> None:
    released = ["0.9.2", "0.25.1", "0.32.0rc1", "0.32.0rc2", "0.32.0", "0.32.0.post1", "0.32.1"]
    assert sorted({*released}, key=values.version_key) == released


def test_a_time_is_the_same_in_either_unit() -> None:
    assert [values.seconds(text) for text in ("2s", "2000ms", "50ms")] == [2.0, 2.0, 0.05]


# Text and back


@given(any_settings())
def test_a_value_written_as_text_is_read_back(settings: Settings) -> None:
    texts = {name: to_text(name, getattr(settings, name)) for name in FIELDS}
    assert {name: of_text(name, text) for name, text in texts.items()} == {
        name: getattr(settings, name) for name in FIELDS
    }, "also where nothing is judged"
    assert load_settings(settings.service, {}, {}, texts) == settings
    names = {FIELDS[name].names[-1]: text for name, text in texts.items()}
    assert load_settings(settings.service, names, {}, {}) == settings


@given(st.sampled_from(sorted(FIELDS)), st.text())
def test_any_text_is_taken_or_refused_and_what_is_taken_is_printable(attribute: str, text: str) -> None:
    try:
        value = getattr(from_flags(**{attribute: text}), attribute)
    except UsageError:
        return
    written = to_text(attribute, value)
    assert written.isprintable()
    assert getattr(from_flags(**{attribute: written}), attribute) == value


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().port = 1  # type: ignore[misc]
