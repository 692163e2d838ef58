"""export: what runs a service without us, as text."""

from __future__ import annotations

from pathlib import Path

import click

from installer.base.errors import UsageError
from installer.base.language import tr
from installer.spec.settings import check_service
from installer.verbs.options import json_option, service_word
from installer.verbs.output import print_json

FORMATS = ("quadlet", "compose", "k8s")  # those of adoption/exported.py, which a test compares: it need not be loaded


@click.command()
@click.option("--format", "form", type=click.Choice(FORMATS), required=True, help="Who is to run it.")
@service_word
@click.option("--image", metavar="REF", help="Another image than vLLM's own of the version that is served.")
@click.option("--output", "-o", type=click.Path(), metavar="FILE", help="Write it there [default: standard output]")
@click.option("--force", is_flag=True, help="Write over FILE.")
@json_option
def export(form: str, service: str, image: str | None, output: str | None, force: bool, as_json: bool) -> None:
    """Print what runs a service without vllm-install: a quadlet of podman's, a compose file, or Kubernetes objects.

    As it was proved, without its key; what it cannot say stands at its top and on standard error.
    """
    from installer.adoption import exported
    from installer.adoption.container import check_image
    from installer.base.host import Host

    output = None if output == "-" else output
    if force and output is None:
        raise UsageError(tr("--force is about a file"), tr("name it: --output FILE"))
    host = Host()
    done = exported.export(check_service(service), form, check_image(image) if image else None, host)
    if output is not None:
        host.write_out(Path(output).absolute(), done.text, force=force)
    if as_json:
        lost = [loss.english for loss in done.lost]
        print_json(
            {
                "service": service, "format": form, "image": done.image, "file": output, "text": done.text,
                "not_said": lost,
            }
        )  # fmt: skip
        return
    if output is None:
        click.echo(done.text, nl=False)
    click.echo(tr("not said in it:"), err=True)
    for loss in done.lost:
        click.echo(f"  - {loss.said}", err=True)
