"""A verb that looks at one host, on all hosts of the service: what each of them says stands behind its name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from installer.base.errors import Exit, Refused, UsageError
from installer.base.language import tr
from installer.base.report import choose
from installer.runtime.vllm_text import one_line
from installer.spec.settings import check_service
from installer.verbs.options import meant_service
from installer.verbs.output import print_json

if TYPE_CHECKING:
    from installer.base.host import Host
    from installer.group.everywhere import Heard
    from installer.spec.group import Peer

FLAG = "--all-hosts"
TYPED = "installer.verbs.all_hosts.typed"
all_hosts_option = click.option(FLAG, is_flag=True, help="Of all hosts of the service, together.")


class OnAllHosts(click.Command):
    """With --all-hosts it looks on each host of the service; else on this one."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        text = "On all hosts of the service, each line with the host's name."
        self.params.append(click.Option([FLAG], is_flag=True, expose_value=False, help=text))

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        context.meta[TYPED] = list(args)
        return super().parse_args(context, [word for word in args if word != FLAG])

    def afterwards(self) -> None:
        """What is left to do when each host has done it."""

    def invoke(self, context: click.Context) -> Any:
        typed = context.meta[TYPED]
        if FLAG not in typed:
            return super().invoke(context)
        if context.params.get("watch") or context.params.get("follow"):
            raise UsageError(tr("what is watched is one host"), tr("look once, or watch it on that host"))
        words, service = [word for word in typed if word != FLAG], None
        if "service" in context.params:
            service = check_service(meant_service(context, context.params["service"], context.params.get("word")))
            words = ["--service", service, *words]
        from installer.group.reach import data_of, known

        verb = context.command_path.removeprefix(context.find_root().command_path).split()
        found = heard(service, [*verb, *words])
        self.afterwards()
        if context.params.get("as_json"):
            print_json({"hosts": {name: data_of(name, ran.out) for name, ran in found.ran.items()}})
        else:
            for name, ran in found.ran.items():
                for line in ran.out.splitlines():
                    click.echo(tr("{what}: {why}", what=name, why=one_line(line, 10_000)))
        sys.exit(
            max([Exit.FAULTS_FOUND if found.lost else Exit.DONE, *(known(ran.code) for ran in found.ran.values())])
        )


def heard(service: str | None, words: Sequence[str]) -> Heard:
    """What each host prints; of those that do not answer it is said why."""
    from installer.base.host import Host
    from installer.group.everywhere import ask

    host = Host()
    found = ask(_peers(service, host), service or "any", words, host, choose(quiet=True))
    for error in found.lost.values():
        click.echo(error.message, err=True)
    if not found.ran:
        raise Refused(tr("no host of the service answers"), tr("vllm-install hosts says why"))
    return found


def _peers(service: str | None, host: Host) -> Sequence[Peer]:
    """Of one service, or of all that this host knows of."""
    from installer.group.change import group_of
    from installer.spec.records import services

    groups = [group_of(host, each) for each in ([service] if service else services(host))]
    peers = {peer.name: peer for group in groups if group for peer in group.peers}
    if not peers:
        raise Refused(
            tr("{service} is on this host alone", service=service or tr("every service")),
            "vllm-install deploy --hosts gpu1,gpu2",
        )
    return tuple(peers.values())
