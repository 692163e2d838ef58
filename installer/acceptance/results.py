"""The outcome of tests, for people, for programs and for CI."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from installer.acceptance.apitest import FAILED, PASSED, SKIPPED, Outcome, Subject
from installer.base import report
from installer.base.language import tr

# What XML 1.0 cannot hold, in whatever form.
UNPRINTABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

NARROW = 60  # columns, below which a table has no room


def all_passed(outcomes: Sequence[Outcome]) -> bool:
    return not any(outcome.status == FAILED for outcome in outcomes)


def to_json(service: str | None, subject: Subject, outcomes: Sequence[Outcome]) -> dict[str, object]:
    """`service` is None for a throwaway server, here and below."""
    count = Counter(outcome.status for outcome in outcomes)
    return {
        "service": service,
        "model": subject.model,
        "url": subject.api.url,
        "passed": count[PASSED],
        "failed": count[FAILED],
        "skipped": count[SKIPPED],
        "seconds": _seconds(outcomes),
        "tests": [
            {
                "name": outcome.name, "status": outcome.status, "seconds": outcome.seconds, "text": outcome.text,
                "hint": outcome.hint, "figures": dict(outcome.figures),
            }
            for outcome in outcomes
        ],
    }  # fmt: skip


def to_junit(service: str | None, subject: Subject, outcomes: Sequence[Outcome]) -> str:
    """One suite in the form that CI systems read."""
    name = service or subject.model
    suite = ET.Element(
        "testsuite",
        name=_xml(f"vllm-install test {name}"),
        tests=str(len(outcomes)),
        failures=str(sum(outcome.status == FAILED for outcome in outcomes)),
        errors="0",
        skipped=str(sum(outcome.status == SKIPPED for outcome in outcomes)),
        time=f"{_seconds(outcomes):.3f}",
    )
    for outcome in outcomes:
        case = ET.SubElement(suite, "testcase", classname=_xml(name), name=outcome.name, time=f"{outcome.seconds:.3f}")
        if outcome.status == FAILED:
            ET.SubElement(case, "failure", message=_xml(outcome.text)).text = _xml(outcome.hint)
        elif outcome.status == SKIPPED:
            ET.SubElement(case, "skipped", message=_xml(outcome.text))
        else:
            ET.SubElement(case, "system-out").text = _xml(outcome.text)
    suites = ET.Element("testsuites")
    suites.append(suite)
    ET.indent(suites)
    return ET.tostring(suites, encoding="unicode", xml_declaration=False) + "\n"


def show(service: str | None, subject: Subject, outcomes: Sequence[Outcome]) -> None:
    """A table on standard output, and under it what failed, with what helps."""
    from rich.table import Table
    from rich.text import Text

    console = report.console(highlight=False)
    if not console.is_terminal:
        console.width = 160
    server = service or tr("throwaway server")
    title = tr("{server}: {model} at {url}", server=server, model=subject.model, url=subject.api.url)
    console.print(title, soft_wrap=True)
    table = Table.grid(padding=(0, 2))
    for justify in ("left", "left", "right"):
        table.add_column(justify=justify, no_wrap=True)
    colours = {PASSED: "green", FAILED: "bold red", SKIPPED: "dim"}
    for outcome in outcomes:
        seconds = f"{outcome.seconds:.2f} s" if outcome.status != SKIPPED else ""
        name, status = tr(outcome.name), Text(tr(outcome.status), colours[outcome.status])
        if console.width < NARROW:
            console.print(Text(f"{name}: ").append(status), outcome.text, soft_wrap=True)
        else:
            table.add_row(name, status, seconds, Text(outcome.text))
    if table.rows:
        console.print(table)
    for outcome in outcomes:
        if outcome.status == FAILED:
            said = tr("failed: {test}: {text}", test=tr(outcome.name), text=outcome.text)
            console.print(said, style="bold red", soft_wrap=True)
            console.print(tr("  help: {hint}", hint=outcome.hint) if outcome.hint else "", soft_wrap=True)
    console.print(_summary(outcomes), soft_wrap=True)


def _summary(outcomes: Sequence[Outcome]) -> str:
    count = Counter(outcome.status for outcome in outcomes)
    passed, failed, skipped = (count[status] for status in (PASSED, FAILED, SKIPPED))
    return tr(
        "{passed} passed, {failed} failed, {skipped} skipped in {seconds:.1f} s",
        passed=passed, failed=failed, skipped=skipped, seconds=_seconds(outcomes),
    )  # fmt: skip


def _seconds(outcomes: Sequence[Outcome]) -> float:
    return round(sum(outcome.seconds for outcome in outcomes), 3)


def _xml(text: str) -> str:
    return UNPRINTABLE.sub("\ufffd", text)
