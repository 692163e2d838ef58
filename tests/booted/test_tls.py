"""HTTPS by a real unit: made, proved, used as client-config says, renewed, refused if it cannot serve; a fallback."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.kit.boot.machine import Machine
from tests.kit.boot.snapshot import snapshot
from tests.kit.certificates import certificate
from tests.kit.life import SERVICE, cli, is_gone, serves, standin, until

pytestmark = pytest.mark.root
CA = "/etc/vllm-install/ca/ca.pem"


@pytest.fixture(scope="module")
def before(machine: Machine) -> dict[str, str]:
    return snapshot(machine.root)


@pytest.fixture(scope="module")
def key(machine: Machine, before: dict[str, str], standin_wheels: Path) -> str:
    return cli(machine, "deploy", *standin(standin_wheels)).key


def answers(machine: Machine, key: str) -> str:
    """What the command answers that client-config prints, as it stands there."""
    command = cli(machine, "client-config", "--format", "curl").out
    assert command.startswith("curl ")
    trust = "[ ! -e /etc/tls/tls.pem ] || export CURL_CA_BUNDLE=/etc/tls/tls.pem"
    return machine.shell(f"{trust}\nexport OPENAI_API_KEY={shlex.quote(key)}\n{command}").stdout


def presented(machine: Machine) -> str:
    shown = machine.shell("openssl s_client -connect 127.0.0.1:8000 </dev/null 2>/dev/null | openssl x509").stdout
    return shown.strip()


def test_a_service_takes_up_https_and_client_config_speaks_it(machine: Machine, key: str) -> None:
    assert "choices" in answers(machine, key)
    cli(machine, "set", "TLS=self")
    assert "choices" in answers(machine, key)
    assert f"--cacert {CA}" in cli(machine, "client-config", "--format", "curl").out
    assert cli(machine, "deploy", "--json").changes == []
    cli(machine, "doctor")
    asked = f"curl -sS --http2 --cacert {CA} -o /dev/null -w '%{{http_code}} %{{http_version}}'"
    status = machine.shell(f"{asked} https://localhost:8000/v1/models").stdout
    assert status == "401 2"
    assert machine.shell(f"runuser -u nobody -- cat {CA.replace('.pem', '.key')}", check=False).returncode != 0


def test_a_certificate_of_one_s_own_is_taken_and_renewed_by_a_reload(machine: Machine, key: str) -> None:
    made, _ = certificate(machine.at("/etc/tls"), "localhost", "127.0.0.1")
    cli(machine, "set", "TLS_CERT=/etc/tls/tls.pem", "TLS_KEY=/etc/tls/tls.key")
    assert presented(machine) == made.read_text().strip()
    certificate(machine.at("/etc/tls"), "localhost", "127.0.0.1")
    machine.run("systemctl", "reload", SERVICE)
    assert presented(machine) == made.read_text().strip()
    good = made.read_text()
    made.write_text("garbage")
    assert machine.run("systemctl", "reload", SERVICE, check=False).returncode != 0
    assert presented(machine) == good.strip()
    assert "the certificate /etc/tls/tls.pem cannot serve" in cli(machine, "set", "DRAIN_SECONDS=31", code=3).err
    made.write_text(good)
    # Whoever owns the directory could put a link to any file in the key's place, and have it read by root.
    machine.shell("mkdir /home/eve && ln -s /etc/tls/tls.key /home/eve/tls.key && chown -h nobody /home/eve")
    said = cli(machine, "set", "TLS_KEY=/home/eve/tls.key", code=3).err
    assert "/home/eve/tls.key: others than root can change /home/eve" in said
    machine.shell("rm -r /home/eve")


OUTSIDE = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        body = b'{"choices": [], "from": "outside"}'
        self.send_response(200 if self.headers["Authorization"] == "Bearer sk-theirs" else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.HTTPServer(("127.0.0.1", 9999), Handler).serve_forever()
"""


def test_another_endpoint_answers_while_the_engine_is_down(machine: Machine, key: str) -> None:
    machine.write("/etc/tls/outside.py", OUTSIDE)
    machine.write("/etc/tls/other.key", "sk-theirs\n", 0o600)
    machine.run("systemd-run", "--unit=outside", "/usr/bin/python3", "/etc/tls/outside.py")
    said = cli(machine, "set", "FALLBACK_URL=http://127.0.0.1:9999/v1", "FALLBACK_KEY_FILE=/etc/tls/other.key").err
    assert "prompts may leave this host: while no replica is up, they are sent to http://127.0.0.1:9999/v1" in said
    assert "outside" not in answers(machine, key)
    machine.run("systemctl", "stop", f"{SERVICE}@1")
    assert '"from": "outside"' in answers(machine, key)
    assert (
        '"from": "outside"'
        not in machine.shell("curl -sS --cacert /etc/tls/tls.pem https://localhost:8000/v1/completions -d '{}'").stdout
    )
    machine.run("systemctl", "start", f"{SERVICE}@1")
    until("the engine is asked again", lambda: "outside" not in answers(machine, key), machine)
    cli(machine, "set", "FALLBACK_URL=", "FALLBACK_KEY_FILE=")
    machine.run("systemctl", "stop", "outside")


def test_back_to_plain_http_and_nothing_is_left(machine: Machine, key: str, before: dict[str, str]) -> None:
    cli(machine, "set", "TLS=none", "TLS_CERT=", "TLS_KEY=")
    serves(machine, key)
    cli(machine, "uninstall", "--purge", "--yes")
    machine.shell("rm -r /etc/tls")
    is_gone(machine, before)
