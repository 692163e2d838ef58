"""sbom: what a service consists of, for those who keep lists of that."""

from __future__ import annotations

from pathlib import Path

import click

from installer.base.errors import UsageError
from installer.base.language import tr
from installer.spec.settings import check_service
from installer.verbs.options import service_word


@click.command()
@service_word
@click.option("--output", "-o", type=click.Path(), metavar="FILE", help="Write it there [default: standard output]")
@click.option("--force", is_flag=True, help="Write over FILE.")
def sbom(service: str, output: str | None, force: bool) -> None:
    """Print what a service consists of, as CycloneDX: packages with licences and checksums, Python, the model."""
    from installer.base.host import Host
    from installer.look import sbom as listing

    output = None if output == "-" else output
    if force and output is None:
        raise UsageError(tr("--force is about a file"), tr("name it: --output FILE"))
    host = Host()
    text = listing.of_service(check_service(service), host)
    if output is None:
        click.echo(text, nl=False)
    else:
        host.write_out(Path(output).absolute(), text, force=force)
