"""What monitor enable refuses, and what it tells Prometheus: by version, and as promtool reads it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import textwrap
from pathlib import Path

import pytest
import yaml

from installer.base.errors import Refused
from installer.base.host import Host
from installer.monitor import place, scrape, targets, watching
from installer.monitor.moment import Moment
from installer.monitor.place import RECORD, Record, Wish
from installer.monitor.scrape import Prometheus
from installer.units import monitoring
from tests.kit.boot.surroundings import REPO

OLD, NEW = Prometheus(version=(2, 42)), Prometheus(version=(2, 43))


def test_below_2_43_the_job_itself_is_to_be_added_and_one_line_from_there_on() -> None:
    old, new = (yaml.safe_load(scrape.missing_lines(found)) for found in (OLD, NEW))
    assert (old["scrape_configs"][0]["job_name"], "scrape_config_files" in old) == ("vllm-install", False)
    assert new == {"scrape_config_files": [str(scrape.SCRAPE)], "rule_files": [str(scrape.RULES)]}
    assert scrape.missing_lines(Prometheus(lacks=(), has_rules=True)) == ""


def test_nobody_is_told_to_do_again_what_cannot_help_before_prometheus_is_there(tmp_path: Path) -> None:
    host = Host(tmp_path)
    (there_is_none,) = watching._missing(Record(), Prometheus(), host)
    assert there_is_none.endswith("&& sudo vllm-install monitor enable")
    assert "the group prometheus cannot read" in list(watching._missing(Record(), NEW, host))[-1]


def test_what_an_earlier_version_was_told_is_not_to_be_added_again(tmp_path: Path) -> None:
    text = "scrape_configs: [{job_name: vllm-install}]\nrule_files: [/etc/vllm-install/monitor/rules.yml]\n"
    Host(tmp_path).write(scrape.DEBIAN / scrape.CONFIGURATION, text)
    found = scrape.look(Host(tmp_path), None)
    told = yaml.safe_load(scrape.missing_lines(Prometheus(version=(2, 42), lacks=found.lacks, has_rules=True)))
    assert [job["job_name"] for job in told["scrape_configs"]] == ["vllm-install-hosts"]


def test_the_key_goes_to_no_other_host() -> None:
    engines, hosts = yaml.safe_load(scrape.scrape_text())["scrape_configs"]
    assert "authorization" in engines
    assert not {"authorization", "basic_auth", "bearer_token", "tls_config"} & hosts.keys()
    assert hosts["file_sd_configs"][0]["files"] == [str(targets.NODES)]
    assert not any(Path(pattern).match(str(targets.NODES)) for pattern in engines["file_sd_configs"][0]["files"])


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_promtool_takes_what_is_to_be_added(tmp_path: Path) -> None:
    above = re.search(r"\n    scrape_configs:\n(?:    .*\n)+", (REPO / "docs/monitoring.md").read_text())
    assert above, "what a Prometheus above others is told"
    (tmp_path / "prometheus.yml").write_text(scrape.scrape_text())
    (tmp_path / "above.yml").write_text(textwrap.dedent(above[0]))
    command = ["promtool", "check", "config", "--syntax-only", *map(str, tmp_path.glob("*.yml"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        (scrape.missing_lines(OLD), (True, True)),
        (scrape.missing_lines(NEW), (True, True)),
        ("scrape_configs: [{job_name: vllm-install}, {job_name: [1]}]\n", (False, False)),
        ("rule_files: ['/etc/vllm-install/monitor/*.yml']\n", (False, True)),
        ("rule_files: [monitor/rules.yml]\n", (False, False)),
        ("- 1\n", (False, False)),
        ("scrape_configs: 7\nrule_files: {a: b}\n", (False, False)),
    ],
)
def test_whether_its_configuration_leads_to_ours(text: str, seen: tuple[bool, bool], tmp_path: Path) -> None:
    Host(tmp_path).write(scrape.DEBIAN / scrape.CONFIGURATION, text)
    found = scrape.look(Host(tmp_path), None)
    assert ((found.scrapes, found.has_rules), found.why) == (seen, "")


def test_a_configuration_that_cannot_be_read_is_said_and_stops_nothing(tmp_path: Path) -> None:
    Host(tmp_path).write(scrape.DEBIAN / scrape.CONFIGURATION, "a: [")
    assert scrape.look(Host(tmp_path), None).why


def test_a_directory_without_a_prometheus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no Prometheus has its configuration in /srv"):
        scrape.look(Host(tmp_path), Path("/srv"))


def test_a_file_of_somebody_elses_or_an_edited_one_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "check_tool", lambda: None)
    host = Host(tmp_path)
    host.write(scrape.RULES, "mine\n")
    with pytest.raises(Refused, match="not made by vllm-install"):
        place.check(Wish(), Record(), host, discard_edits=True)
    edited = Record(written={str(scrape.RULES): "0" * 64})
    with pytest.raises(Refused, match="was edited by hand"):
        place.check(Wish(), edited, host, discard_edits=False)
    place.check(Wish(), edited, host, discard_edits=True)


def test_grafanas_directory_may_be_nobody_elses_to_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "check_tool", lambda: None)
    host, wish = Host(tmp_path), Wish(grafana="/etc/grafana")
    tmp_path.chmod(0o755)
    with pytest.raises(Refused, match="is no directory"):
        place.check(wish, Record(), host, discard_edits=False)
    host.make_dir(Path("/etc/grafana/dashboards"))
    place.check(wish, Record(), host, discard_edits=False)
    host.at(Path("/etc/grafana")).chmod(0o775)
    with pytest.raises(Refused, match="can be changed by others"):
        place.check(wish, Record(), host, discard_edits=False)


def test_a_record_that_is_none_is_not_taken_for_one(tmp_path: Path) -> None:
    Host(tmp_path).write(RECORD, "[]")
    with pytest.raises(Refused, match="no record of ours"):
        place.recorded(Host(tmp_path))


def test_targets_of_a_service_that_is_gone_go_and_others_files_stay(tmp_path: Path) -> None:
    host = Host(tmp_path)
    for name in ("gone.json", "notes.txt"):
        host.write(targets.TARGETS / name, json.dumps([]))
    targets.bring_up_to_date(Moment(host))
    assert [path.name for path in host.children(targets.TARGETS)] == ["hosts.yml", "notes.txt"]
    assert json.loads(host.read(targets.NODES) or "") == []


def test_a_new_service_gets_the_key_while_somebody_watches(tmp_path: Path) -> None:
    host = Host(tmp_path)
    assert monitoring.key(host) is None
    host.write(monitoring.KEY, "sk-monitor-x\n")
    found = monitoring.key(host)
    assert found is not None
    assert (found.name, found.role) == ("monitor", "metrics")
