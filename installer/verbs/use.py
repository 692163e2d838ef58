"""test, client-config: a service as its clients meet it."""

from __future__ import annotations

import click

from installer.verbs.options import json_option, service_option
from installer.verbs.output import print_json

FORMATS = ("env", "spring", "python", "curl", "litellm")  # a test holds them together with installer.client's


@click.command("client-config")
@click.option("--format", "form", type=click.Choice(FORMATS), required=True, help="What the client reads.")
@service_option
@click.option("--for", "far", metavar="HOST", help="Where the client runs [default: on this host]")
@click.option("--show-key", is_flag=True, help="Put the key in, where the unit holds it verbatim (root only).")
@json_option
def client_config(form: str, service: str, far: str | None, show_key: bool, as_json: bool) -> None:
    """Print what a client needs, ready to paste: address, model and where the key goes."""
    from installer import client as view
    from installer.host import Host
    from installer.report import choose
    from installer.settings import check_service

    client = view.client_of(check_service(service), Host(), choose(quiet=False), far=far, show_key=show_key)
    text = view.FORMATS[form](client)
    if as_json:
        print_json(
            {
                "service": service, "format": form, "base_url": client.base_url, "model": client.model,
                "api_key": client.key, "text": text,
            }
        )  # fmt: skip
        return
    click.echo(text, nl=False)
    if client.key is None:
        click.echo(
            f"the key was shown once, when it was made; a new one: sudo vllm-install set-apikey --service {service}",
            err=True,
        )
