"""set-apikey, keys: who may ask a service, changed without a restart."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, TextIO

import click

from installer.base.cells import pad
from installer.base.errors import UsageError
from installer.base.language import mark, tr
from installer.base.layout import Layout
from installer.base.report import choose
from installer.spec.settings import check_service
from installer.verbs.options import ServiceGroup, below_service_option, json_option, quiet_option, service_option
from installer.verbs.output import print_json
from installer.verbs.over import OverHosts

if TYPE_CHECKING:
    from installer.flow.rotate import Rotated
    from installer.runtime.vllm_limits import Limit
    from installer.spec.keys import Key


@click.command("set-apikey", cls=OverHosts)
@click.argument("key", required=False, metavar="[KEY|-]")
@service_option
@click.option("--name", default="default", show_default=True, help="Which key to set.")
@click.option("--role", type=click.Choice(["metrics", "inference", "admin"]), default="inference", show_default=True)
@click.option("--keep-old", metavar="DURATION", help="Let the old key work this long too: 90s, 10m, 36h, 7d.")
@click.option("--file", "file", type=click.File(), help="Read the key from a file.")
@json_option
@quiet_option
def set_apikey(
    service: str, key: str | None, name: str, role: str, keep_old: str | None, file: TextIO | None,
    as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Rotate an API key without restarting vLLM; - reads it from standard input, no KEY makes one."""
    from installer.base.host import Host
    from installer.flow import rotate
    from installer.spec import keys

    if key is not None and file is not None:
        raise UsageError(
            tr("a key on the command line and one in a file contradict each other"), tr("give one of them")
        )
    text = file.read() if file is not None else sys.stdin.read() if key == "-" else key
    rotation = rotate.Rotation(
        name=keys.check_name(name),
        text=keys.check_plain(text.strip()) if text is not None else None,
        role=role,
        keep_old=keys.duration(keep_old) if keep_old else None,
    )

    def show(done: Rotated) -> None:
        if as_json:
            print_json({"service": service, "name": done.name, "api_key": done.made, "old_until": done.old_until})
        else:
            _print_rotated(service, done)
        sys.stdout.flush()

    rotate.set_key(check_service(service), rotation, Host(), choose(quiet=quiet or as_json), show)


def _print_rotated(service: str, done: Rotated) -> None:
    if done.made:
        click.echo(done.made)
        click.echo(tr("this key is shown only now; keep it"), err=True)
    said = {
        "serves": mark("{service}: the key {name} is in force; nothing was restarted"),
        "starts": mark("{service}: the key {name} is in force as soon as the service answers"),
        "stopped": mark("{service} is not running; the key {name} works from its next start on"),
    }
    if done.service in said:
        click.echo(tr(said[done.service], service=service, name=done.name), err=True)
    if done.old_until:
        click.echo(tr("the old key works until {time}", time=done.old_until), err=True)


@click.group("keys", cls=ServiceGroup, invoke_without_command=True)
@service_option
@json_option
@click.pass_context
def keys(context: click.Context, service: str, as_json: bool) -> None:
    """List the API keys: name, role, start of the digest, expiry, when last used, limits."""
    from installer.base.host import Host
    from installer.flow import limit, rotate
    from installer.look import usage

    context.obj = check_service(service)
    if context.invoked_subcommand:
        return
    host, layout = Host(), Layout(service)
    found, used, limited = (
        rotate.list_keys(service, host),
        usage.last_used(host, layout),
        limit.of_service(host, layout),
    )
    if as_json:
        print_json([_plain(key, used, limited) for key in found])
    for key in [] if as_json else found:
        more = [_ending(key), *_use(key, used, limited)]
        click.echo(f"{pad(key.name, 20)} {pad(key.role, 10)} {key.digest[:8]}  {'  '.join(more)}")


def _plain(key: Key, used: Mapping[str, str | None], limited: Mapping[str, Limit]) -> dict[str, object]:
    from installer.spec import limits

    name = limits.account(key)
    about: dict[str, object] = {"name": key.name, "role": key.role, "digest": key.digest[:8]}
    about |= {"expiry": key.expiry, "expired": key.is_over, "last_used": used.get(name)}
    return about | {"limit": limits.to_json(limited[name]) if name in limited else None}


def _use(key: Key, used: Mapping[str, str | None], limited: Mapping[str, Limit]) -> Iterator[str]:
    """When it was used, where that is known, and what it may."""
    from installer.spec import limits

    name = limits.account(key)
    if last := used.get(name):
        yield tr("last used {time}", time=last)
    if name in limited:
        yield limits.in_words(limited[name])


def _ending(key: Key) -> str:
    if key.expiry is None:
        return tr("no expiry")
    return tr("expired at {time}", time=key.expiry) if key.is_over else key.expiry


@keys.command("revoke", cls=OverHosts)
@click.argument("name")
@below_service_option
@quiet_option
@click.pass_obj
def revoke(chosen: str, name: str, service: str | None, quiet: bool) -> None:
    """Take a key out of force at once."""
    from installer.base.host import Host
    from installer.flow import rotate

    service = check_service(service or chosen)
    rotate.revoke_key(service, name, Host(), choose(quiet=quiet))
    click.echo(tr("{service}: the key {name} is revoked", service=service, name=name))
