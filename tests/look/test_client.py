"""client-config: rows 23 and 29 of the features, each format read by the parser that its users have."""

from __future__ import annotations

import ast
import dataclasses
import json
import shlex
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from installer.base.errors import InstallError, Refused, UsageError
from installer.base.host import Host
from installer.base.layout import Layout
from installer.base.report import Report
from installer.look.client import Client, client_of
from installer.look.formats import FORMATS, PLACEHOLDER
from installer.spec.keys import Key, digest
from installer.spec.records import save_state
from installer.spec.settings import Settings
from installer.spec.state import State
from installer.units.authority import CERTIFICATE
from installer.units.render import unit
from installer.verbs import use
from tests.kit import openai_client
from tests.kit.certificates import certificate
from tests.kit.samples import TEXTS
from tests.kit.targets import target

LAYOUT = Layout("qwen3vl")
KEY = "sk-\"quoted\"-'and'-$(id)-`x`-\\n-${HOME}"
LOOKED_UP = "os.environ/"  # what LiteLLM takes for a reference
PRINTABLE = TEXTS.filter(lambda text: text.isprintable() and text.strip() == text != "" and LOOKED_UP not in text)
CLIENTS = st.builds(Client, st.just("http://[::1]:8000/v1"), PRINTABLE, st.one_of(st.none(), st.just(KEY)))


def made(settings: Settings | None = None, keys: tuple[Key, ...] = (), root: Path | None = None) -> Host:
    assert root is not None
    host = Host(root=root)
    wanted = target(settings or Settings(), keys=keys or (Key("default", digest("x")),))
    save_state(host, LAYOUT, State(LAYOUT.service, proved=wanted))
    host.write(LAYOUT.unit, unit(wanted, LAYOUT))
    return host


def test_the_command_line_offers_every_format() -> None:
    assert tuple(FORMATS) == use.FORMATS


# What it says, read back


@given(CLIENTS)
def test_parity_row_29_env_sourced_by_a_shell_gives_the_values_and_runs_nothing(client: Client) -> None:
    script = (
        FORMATS["env"](client)
        + 'printf \'%s\\0\' "$OPENAI_API_KEY" "$OPENAI_BASE_URL" "$OPENAI_API_BASE" "$AGENT_MODEL"'
    )
    read = subprocess.run(["sh", "-euc", script], check=True, capture_output=True).stdout.split(b"\0")[:-1]
    expected = [client.key or PLACEHOLDER, client.base_url, client.base_url, client.model]
    assert [value.decode() for value in read] == expected


class Answers(BaseHTTPRequestHandler):
    """Stands in for the service; keeps what it was asked."""

    asked: ClassVar[list[tuple[str, str | None, str]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.path, self.headers["Authorization"], body["model"]))
        message = {"role": "assistant", "content": "from here"}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        answer = {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"], "choices": [choice]}
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: object) -> None:
        """Nothing of it is for the terminal."""


def test_the_openai_package_asks_the_service_with_what_env_prints(tmp_path: Path) -> None:
    Answers.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = Client(f"http://127.0.0.1:{server.server_port}/v1", "org/model", KEY)
        said = openai_client.ask(FORMATS["env"](client), tmp_path)
        server.shutdown()
    assert said == "from here\n"
    assert Answers.asked == [("/v1/chat/completions", f"Bearer {KEY}", "org/model")]


def test_env_of_plain_values_has_no_quotes_which_some_readers_would_keep() -> None:
    text = FORMATS["env"](Client("http://127.0.0.1:8000/v1", "Qwen/Qwen3-VL-8B-Instruct"))
    assert text.splitlines() == [
        "OPENAI_API_KEY=REPLACE-WITH-YOUR-KEY",
        "OPENAI_BASE_URL=http://127.0.0.1:8000/v1",
        "OPENAI_API_BASE=http://127.0.0.1:8000/v1",
        "AGENT_MODEL=Qwen/Qwen3-VL-8B-Instruct",
    ]


@given(CLIENTS)
def test_parity_row_23_spring_and_litellm_are_yaml_with_the_values(client: Client) -> None:
    if "${" in client.model + (client.key or ""):
        with pytest.raises(UsageError, match="Spring would not take"):
            FORMATS["spring"](client)
    else:
        block = yaml.safe_load(FORMATS["spring"](client))["vllm"]
        key = client.key or "${OPENAI_API_KEY}"
        assert block == {"url": client.base_url, "model": client.model, "api-key": key, "timeout": "120s"}
    (entry,) = yaml.safe_load(FORMATS["litellm"](client))["model_list"]
    assert entry["model_name"] == client.model
    assert entry["litellm_params"] == {
        "model": f"hosted_vllm/{client.model}", "api_base": client.base_url,
        "api_key": client.key or "os.environ/OPENAI_API_KEY", "timeout": 120,
    }  # fmt: skip


def test_a_name_that_the_reader_would_look_up_is_refused() -> None:
    with pytest.raises(UsageError, match="Spring"):
        FORMATS["spring"](Client("http://h/v1", "${PATH}"))
    with pytest.raises(UsageError, match="LiteLLM"):
        FORMATS["litellm"](Client("http://h/v1", "os.environ/HOME"))


@given(CLIENTS)
def test_python_is_python_with_the_values_as_literals(client: Client) -> None:
    tree = ast.parse(FORMATS["python"](client))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    given = {word.arg: word.value for call in calls for word in call.keywords}
    assert ast.literal_eval(given["base_url"]) == client.base_url
    assert ast.literal_eval(given["model"]) == client.model
    key = ast.unparse(given["api_key"])
    assert key == repr(client.key) if client.key else key == "os.environ['OPENAI_API_KEY']"


@given(CLIENTS)
def test_curl_hands_over_exactly_the_values(client: Client) -> None:
    words = shlex.split(FORMATS["curl"](client))
    assert words[:2] == ["curl", f"{client.base_url}/chat/completions"]
    assert f"Authorization: Bearer {client.key or '$OPENAI_API_KEY'}" in words
    assert json.loads(words[-1])["model"] == client.model


# The address


@pytest.mark.parametrize(
    ("listen", "far", "expected"),
    [
        ("0.0.0.0", None, "http://127.0.0.1:8000/v1"),
        ("::", None, "http://[::1]:8000/v1"),
        ("10.1.2.3", None, "http://10.1.2.3:8000/v1"),
        ("localhost", None, "http://localhost:8000/v1"),
        ("0.0.0.0", "127.0.0.1", "http://127.0.0.1:8000/v1"),
        ("0.0.0.0", "localhost", "http://127.0.0.1:8000/v1"),
        ("127.0.0.1", "localhost", "http://127.0.0.1:8000/v1"),
        ("::", "::1", "http://[::1]:8000/v1"),
        ("::", "127.0.0.1", "http://127.0.0.1:8000/v1"),
        ("10.1.2.3", "127.0.0.1", "http://10.1.2.3:8000/v1"),
    ],
)
def test_the_address_is_one_that_the_client_reaches(
    listen: str, far: str | None, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client = client_of("qwen3vl", made(Settings(host=listen), root=tmp_path), Report(), far=far)
    assert client.base_url == expected
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("far", ["no-such-host.invalid", "a\0b", "x" * 300, "", "::1"])
def test_a_host_that_cannot_be_asked_for_is_said(far: str, tmp_path: Path) -> None:
    with pytest.raises(InstallError, match=r"--for"):
        client_of("qwen3vl", made(root=tmp_path), Report(), far=far)


# The key


def test_no_key_is_shown_unless_asked_for(tmp_path: Path) -> None:
    plain = Key("default", digest(KEY), plain=KEY)
    client = client_of("qwen3vl", made(keys=(plain,), root=tmp_path), Report())
    assert client.key is None
    assert not [name for name, text in FORMATS.items() if KEY in text(client)]


@pytest.mark.root
def test_a_key_in_clear_is_shown_to_root_who_asks(tmp_path: Path) -> None:
    plain = Key("default", digest(KEY), plain=KEY)
    probe = Key("probe", digest(KEY), plain="sk-the-probe-s-own-key")
    client = client_of("qwen3vl", made(keys=(probe, plain), root=tmp_path), Report(), show_key=True)
    assert client.key == KEY


@pytest.mark.root
@pytest.mark.parametrize(
    "change", [{"plain": None}, {"expiry": "2999-01-01T00:00:00Z"}, {"role": "metrics"}, {"name": "probe"}]
)
def test_where_no_key_is_known_the_way_to_one_is_said(change: dict[str, str | None], tmp_path: Path) -> None:
    key = dataclasses.replace(Key("default", digest(KEY), plain=KEY), **change)  # type: ignore[arg-type]
    with pytest.raises(Refused) as refused:
        client_of("qwen3vl", made(keys=(key,), root=tmp_path), Report(), show_key=True)
    assert "set-apikey" in refused.value.hint


def test_a_service_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="manages no service"):
        client_of("qwen3vl", Host(root=tmp_path), Report())
    save_state(Host(root=tmp_path), LAYOUT, State("qwen3vl"))
    with pytest.raises(Refused, match="never been proved"):
        client_of("qwen3vl", Host(root=tmp_path), Report())


# HTTPS


PRIVATE = Client("https://gpu1:8000/v1", "m", None, "/etc/vllm-install/ca/ca.pem")


def test_each_format_says_whom_to_trust() -> None:
    assert "\nSSL_CERT_FILE=/etc/vllm-install/ca/ca.pem\n" in FORMATS["env"](PRIVATE)
    assert shlex.split(FORMATS["curl"](PRIVATE))[1:3] == ["--cacert", PRIVATE.authority]
    assert yaml.safe_load(FORMATS["litellm"](PRIVATE))["litellm_settings"] == {"ssl_verify": PRIVATE.authority}
    assert yaml.safe_load(FORMATS["spring"](PRIVATE))["vllm"]["ca-certificate"] == PRIVATE.authority
    tree = ast.parse(FORMATS["python"](PRIVATE))
    assert [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names] == ["os", "ssl"]
    assert f"cafile={PRIVATE.authority!r}" in ast.unparse(tree)


def test_without_tls_of_our_own_nothing_is_said_of_trust() -> None:
    public = dataclasses.replace(PRIVATE, authority=None)
    assert all(word not in FORMATS[form](public) for form in FORMATS for word in ("ca.pem", "ssl", "SSL", "--cacert"))


def test_the_address_is_a_name_that_the_certificate_has(tmp_path: Path) -> None:
    own = Settings(tls_cert="/etc/tls/tls.pem", tls_key="/etc/tls/tls.key", host="0.0.0.0")
    host = made(own, root=tmp_path)
    assert client_of("qwen3vl", host, Report()).base_url == "https://127.0.0.1:8000/v1"  # it cannot be read here
    openssl = shutil.which("openssl")
    assert openssl
    host.make_dir(Path("/usr/bin"))
    host.at(Path("/usr/bin/openssl")).symlink_to(openssl)
    certificate(host.at(Path("/etc/tls")), "*.llm.example", "llm.example")
    assert client_of("qwen3vl", host, Report()).base_url == "https://llm.example:8000/v1"
    certificate(host.at(Path("/etc/tls")), "llm.example", "127.0.0.1")
    assert client_of("qwen3vl", host, Report()).base_url == "https://127.0.0.1:8000/v1"
    found = client_of("qwen3vl", made(Settings(tls="self"), root=tmp_path), Report())
    assert (found.base_url, found.authority) == ("https://127.0.0.1:8000/v1", str(CERTIFICATE))
