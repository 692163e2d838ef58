"""Every verb with a record that is damaged, or newer than this tool: a clear refusal or an answer, and others go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from installer.base.errors import Exit
from installer.base.host import Host
from installer.base.layout import Layout
from installer.spec.records import save_state
from installer.spec.settings import Settings
from installer.spec.state import State
from tests.base.test_files import KINDS, planted
from tests.kit.boot.surroundings import REPO
from tests.kit.targets import target
from tests.spec.test_state import DAMAGED

Answer = tuple[int, str, str]
RECORD = Layout("bad").state_file
ANOTHER_USERS = "of another user"
TEXTS = ("empty", "cut off", "no fields", "no text", "other types", "nested", "a long number")
TOLD_BY_ALL = ("cut off", "pipe")  # one is text, one is not; of the others two verbs are asked
LOOKS = ("status", "keys", "test", "client-config --format env", "uninstall --dry-run", "uninstall --dry-run --json")
CHANGES = (
    "deploy", "deploy --json", "plan", "set-apikey", "keys revoke default", "set-context 2048", "set PORT=8005",
    "upgrade", "upgrade --dry-run", "rollback", "rollback --dry-run", "eject --yes", "eject --dry-run",
    "adopt /nowhere",
)  # fmt: skip
REMOVALS = ("prune --yes", "models prune --yes")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host with two services that were proved."""
    tmp_path.chmod(0o755)
    host = Host(tmp_path)
    for service, port in (("good", 8000), ("bad", 8001)):
        proved = target(Settings(service=service, port=port, engine="cpu", offline=True), kind="cpu")
        layout = Layout(service)
        save_state(host, layout, State(service, {str(layout.unit): ("1",)}, proved=proved, previous=proved))
    return host


def answers(host: Host, lines: Iterable[str]) -> dict[str, Answer]:
    words = "".join(json.dumps(line.split()) + "\n" for line in lines)
    command = [sys.executable, "-m", "tests.kit.below", str(host.root)]
    environment = {"PATH": os.environ["PATH"], "HOME": "/root", "LC_ALL": "C.UTF-8", "PYTHONPATH": str(REPO)}
    ran = subprocess.run(command, input=words, env=environment, capture_output=True, text=True, check=True)
    return dict(zip(lines, map(tuple, map(json.loads, ran.stdout.splitlines())), strict=True))


def about(service: str, verbs: Iterable[str]) -> list[str]:
    return [f"{verb} --service {service}" for verb in verbs]


def is_refused(answer: Answer) -> bool:
    """With the documented code, and words that name the record; to a program as data."""
    code, out, err = answer
    said = json.loads(out)["error"]["message"] if out else err
    return code == Exit.REFUSED and str(RECORD) in said and "Traceback" not in err


def damage(host: Host, how: str) -> None:
    path = host.at(RECORD)
    if how == ANOTHER_USERS:
        os.chown(path, 65534, 65534)
    elif how in KINDS:
        path.unlink()
        planted(how, path)
    else:
        host.write(RECORD, DAMAGED[how])


@pytest.mark.parametrize("how", [*TEXTS, *KINDS, pytest.param(ANOTHER_USERS, marks=pytest.mark.root)])
def test_a_damaged_record_is_named_by_whatever_is_done_with_it_and_concerns_no_other(host: Host, how: str) -> None:
    unharmed = answers(host, about("good", (*LOOKS[:4], "plan")))
    damage(host, how)
    on_it = about("bad", (*LOOKS, *CHANGES) if how in TOLD_BY_ALL else (LOOKS[0], CHANGES[0]))
    general = ("doctor --service bad", "list --json", "models list")
    found = answers(host, [*on_it, *REMOVALS, *general, *unharmed])
    assert {line: found[line] for line in (*on_it, *REMOVALS) if not is_refused(found[line])} == {}
    assert [found[line][0] for line in general] == [Exit.FAULTS_FOUND, Exit.DONE, Exit.DONE]
    assert "[record-damaged]" in found["doctor --service bad"][1]
    assert [row["service"] for row in json.loads(found["list --json"][1])] == ["bad", "good"]
    for line, (code, _, err) in unharmed.items():
        assert (found[line][0], "bad" in found[line][2]) == (code, "bad" in err), (line, found[line])


def test_a_newer_record_is_looked_at_and_removed_but_not_changed(host: Host) -> None:
    looks = about("bad", (*LOOKS, "doctor"))
    ours = answers(host, looks)
    newer = json.loads(host.read(RECORD) or "") | {"version": 99, "of_tomorrow": {"replicas": 2}}
    host.write(RECORD, json.dumps(newer))
    found = answers(host, [*looks, *about("bad", CHANGES), *REMOVALS, *about("good", LOOKS)])
    assert [(line, found[line][0]) for line in looks] == [(line, ours[line][0]) for line in looks]
    assert "builtin" not in found["status --service bad"][1]
    assert target().model.id in found["status --service bad"][1]
    assert "note: " in (said := found["doctor --service bad"][1])
    assert "[record-newer]" in said
    refused = [*about("bad", CHANGES), *REMOVALS]
    assert [line for line in refused if not is_refused(found[line])] == []
    assert "install the newer one" in found["deploy --service bad"][2]
    assert [line for line in about("good", LOOKS) if str(RECORD) in found[line][2]] == []
    assert json.loads(host.read(RECORD) or "") == newer


def test_what_is_to_be_adopted_has_to_be_there_before_its_name_matters(host: Host) -> None:
    host.write(Path("/root/serve.sh"), "vllm serve /models/a --port 8005\n")
    nowhere, there = about("good", ("adopt nosuch", "adopt /root/serve.sh"))
    found = answers(host, (nowhere, there))
    assert [found[line][0] for line in (nowhere, there)] == [Exit.REFUSED, Exit.REFUSED]
    assert "nosuch does not exist" in found[nowhere][2]
    assert "good is managed by vllm-install already" in found[there][2]


def test_a_service_that_there_is_not_is_said_so_by_what_only_looks(host: Host) -> None:
    looks = [
        "logs nosuch", "logs nosuch.service -n 5", "hosts --service nosuch", "sbom nosuch", "soak nosuch",
        "status nosuch", "status nosuch.service", "keys nosuch", "bench history --service nosuch",
        "bench show --service nosuch", "bench show 2026 --service nosuch", "bench compare 1 2 --service nosuch",
    ]  # fmt: skip
    for line, (_, out, err) in answers(host, looks).items():
        assert "vllm-install manages no service nosuch on this host" in err, line
        assert "good" not in out, line
    assert answers(host, ["usage good"])["usage good"][1] == "no key of good was used in that time\n"


def test_what_was_measured_of_a_service_without_a_result(host: Host) -> None:
    history, throwaway, show, file = (
        "bench good history",
        "bench history --throwaway",
        "bench good show",
        "bench show /a",
    )
    found = answers(host, [history, throwaway, show, file])
    assert found[history] == (Exit.DONE, "nothing of good was measured yet\n", "")
    assert found[throwaway][0] == Exit.DONE
    assert (found[show][0], "nothing of good was measured yet" in found[show][2]) == (Exit.REFUSED, True)
    assert "there is no /a" in found[file][2], "a file is of any host"


def test_a_word_like_a_command_is_a_service_where_one_is_called_so(host: Host) -> None:
    save_state(host, Layout("hsitory"), State("hsitory"))
    found = answers(host, ["bench hsitory history", "bench hsitory.service history", "bench histroy"])
    assert [code for code, *_ in found.values()] == [Exit.DONE, Exit.DONE, Exit.USAGE]


def test_systemctl_is_shown_for_the_only_service(tmp_path: Path) -> None:
    host = Host(tmp_path)
    save_state(host, Layout("coder"), State("coder"))
    assert "help: sudo systemctl restart coder" in answers(host, ["restart"])["restart"][2]
