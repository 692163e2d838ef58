"""doctor: what is wrong, and what helps."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from installer.base.errors import Exit, InstallError, UsageError
from installer.base.language import tr
from installer.base.report import choose
from installer.spec.settings import check_service
from installer.verbs.all_hosts import OnAllHosts
from installer.verbs.options import json_option, service_word
from installer.verbs.output import print_json

if TYPE_CHECKING:
    from installer.base.host import Host
    from installer.diagnosis.doctor import Diagnosis


@click.command(cls=OnAllHosts)
@service_word
@click.option(
    "--report",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="Write a redacted report for a bug tracker (.tar.gz).",
)
@click.option(
    "--update-advisories",
    "feed",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Take over a newer list of known flaws; FILE.sig is its signature.",
)
@click.option(
    "--verify-with",
    "signers",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Who may have signed that list.",
)
@click.option("--bundle", "report", type=click.Path(dir_okay=False), hidden=True)  # what it was called at first
@json_option
def doctor(service: str, report: str | None, feed: Path | None, signers: Path | None, as_json: bool) -> None:
    """Say what is wrong, root cause first, with the command that helps; changes nothing.

    Exit status 0: no fault was found; 8: faults were found.
    """
    import dataclasses

    from installer.base.host import Host
    from installer.diagnosis import advisories, bug_report
    from installer.diagnosis import doctor as surgery
    from installer.diagnosis.scene import look

    if (feed is None) != (signers is None):
        raise UsageError(
            tr("--update-advisories and --verify-with belong together: a list, and who may have signed it"),
            "sudo vllm-install doctor --update-advisories FILE --verify-with SIGNERS",
        )
    if feed and signers:
        brought, signer = advisories.update(feed, signers, Host())
        said = tr("{count} known flaws as of {day}, signed by {signer}",
                  count=len(brought.advisories), day=brought.issued, signer=signer)  # fmt: skip
        click.echo(said, err=True)
    folder = Path(report or ".").absolute().parent
    if not folder.is_dir():
        raise UsageError(tr("there is no directory {path}", path=folder), f"mkdir -p {shlex.quote(str(folder))}")
    scene = look(check_service(service), Host())
    found = _with_hosts(surgery.diagnose(scene), scene.host)
    if report:
        bug_report.write(scene, found, Path(report).absolute())
        click.echo(tr("{file} is written; look through it before you give it to anybody", file=report), err=True)
    if as_json:
        print_json({**dataclasses.asdict(found), "healthy": found.is_healthy})
    else:
        _print(found)
    sys.exit(Exit.DONE if found.is_healthy else Exit.FAULTS_FOUND)


def _with_hosts(found: Diagnosis, host: Host) -> Diagnosis:
    """Where the service is on several hosts, what is wrong between them stands first."""
    import dataclasses

    from installer.group import look
    from installer.group.change import group_of

    try:
        group = group_of(host, found.service)
        if group is None:
            return found
        between = tuple(look.findings(look.at(host, group, found.service, choose(quiet=True))))
    except InstallError as error:
        return dataclasses.replace(found, unseen=(*found.unseen, tr("{what}: {why}", what="hosts", why=error.message)))
    return dataclasses.replace(found, findings=(*between, *found.findings))


def _print(found: Diagnosis) -> None:
    """Short lines without a table: they read the same on a terminal of any width, and in a pipe."""
    for finding in found.findings:
        said = tr("{what}: {why}", what=tr(finding.severity), why=finding.cause)
        click.echo(f"{said} [{finding.id}]")
        click.echo(tr("  seen: {evidence}", evidence=finding.evidence))
        for number, command in enumerate(finding.commands):
            click.echo(tr("  or:   {command}", command=command) if number else tr("  do:   {command}", command=command))
    for line in found.unseen:
        click.echo(tr("not seen: {line}", line=line), err=True)
    if not found.findings:
        click.echo(tr("{service}: nothing is wrong", service=found.service))
