"""A verb on every host of a group: what was typed here is done there, each its own transaction, on all or on none."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from installer.base.errors import Refused, UsageError
from installer.base.language import tr
from installer.base.report import choose
from installer.runtime.vllm_text import one_line
from installer.spec.settings import NAMES, check_service
from installer.spec.values import REPLICAS, SPAN
from installer.verbs.options import agree, meant_service
from installer.verbs.output import as_plain, print_json

if TYPE_CHECKING:
    from installer.base.host import Host
    from installer.base.report import Report
    from installer.flow.request import Request
    from installer.group.job import Job
    from installer.group.member import Look
    from installer.group.reach import Team
    from installer.spec.group import Group

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
TYPED, OFFERED = "installer.verbs.over.typed", "installer.verbs.over.offered"
ALONE, STAGE = "this_host_only", "stage"
NOT_PASSED = {
    "service", "word", "hosts", "mode", "peer_network", "gateway_hosts", "as_json", "quiet", "dry_run", "yes",
    "api_key_file", "key", "file", ALONE,
}  # fmt: skip


def stage_option(verb: Decorated) -> Decorated:
    """What other hosts of a group ask for: engine and weights and nothing that serves, or which weights are needed."""
    verb = click.option("--stage", type=click.Choice(["all", "needs"]), hidden=True)(verb)
    return click.option("--offered", multiple=True, hidden=True, expose_value=False, callback=_offers)(verb)


def _offers(context: click.Context, _: click.Parameter, texts: Sequence[str]) -> None:
    """Models that another host of the group has."""
    if texts:
        from installer.spec.offer import Offer
        from installer.spec.record import UNREADABLE, read_as

        try:
            context.meta[OFFERED] = tuple(read_as(Offer, json.loads(text)) for text in texts)
        except UNREADABLE:
            raise UsageError(tr("what another host offers is no offer")) from None


def with_offers(request: Request) -> Request:
    return replace(request, caches=(*request.caches, *click.get_current_context().meta.get(OFFERED, ())))


def show_staged(request: Request, stage: str, host: Host, report: Report) -> None:
    from installer.flow import deploy as flow
    from installer.flow import needs

    if stage == "needs":
        print_json([as_plain(need) for need in needs.of(request, host, report)])
    else:
        print_json(as_plain(flow.stage(request, host, report)))


class OverHosts(click.Command):
    """Acts on all hosts where the service is of a group, unless --this-host-only; else on this host as ever."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        text = "Change this host alone, where the service is of a group of hosts."
        self.params.append(click.Option(["--this-host-only", ALONE], is_flag=True, expose_value=False, help=text))

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        typed = list(args)
        context.meta[TYPED] = typed
        return super().parse_args(context, args)

    def invoke(self, context: click.Context) -> Any:
        typed, order = self._raw(context)
        if typed.get(ALONE) or context.params.get("every"):
            return super().invoke(context)
        from installer.base.host import Host
        from installer.group.change import group_of

        host = Host()
        try:
            service = check_service(_service(context))
        except UsageError:  # the verb itself says what is wrong, in its own order
            return super().invoke(context)
        names = context.params.get("hosts")
        group = group_of(host, service)
        if group is None and not names:
            return super().invoke(context)
        if self.name == "set-context" and context.params["dry_run"]:  # what fits here
            return super().invoke(context)
        return _over(_Call(context, self, service, typed, order), names or (), group, host)

    def _raw(self, context: click.Context) -> tuple[Mapping[str, Any], Sequence[click.Parameter]]:
        """The words as they were typed, by parameter."""
        options, _, order = self.make_parser(context).parse_args(list(context.meta[TYPED]))
        return options, order


def _service(context: click.Context) -> str:
    service = str(context.params["service"] or context.obj)
    words = context.params.get("assignments") or ()
    first = context.params.get("word") or (words[0] if words and "=" not in words[0] else None)
    return meant_service(context, service, None if first is None or first.startswith("-") else first)


class _Call:
    """A verb as it was typed, and as it is to be typed on each host."""

    def __init__(
        self, context: click.Context, command: click.Command, service: str, typed: Mapping[str, Any],
        order: Sequence[click.Parameter],
    ) -> None:  # fmt: skip
        self.context, self.command, self.service, self.typed, self.order = context, command, service, typed, order
        self.verb = context.command_path.removeprefix(f"{context.find_root().command_path} ")
        self.as_json, self.quiet = bool(context.params.get("as_json")), bool(context.params.get("quiet"))
        self.dry_run, self.yes = bool(context.params.get("dry_run")), bool(context.params.get("yes"))

    @property
    def report(self) -> Report:
        return choose(quiet=self.quiet or self.as_json)

    @property
    def format(self) -> tuple[str, ...]:
        return ("--json",) if self.as_json else ()

    @property
    def what(self) -> str:
        """As a history names it; no key is among its words."""
        words = [word for parameter in self.command.params for word in self._argument(parameter)]
        return " ".join([self.verb, *words])

    @property
    def words(self) -> tuple[str, ...]:
        """For another host: the same options, its name for the service, and none of those that are for us."""
        options = [word for parameter in dict.fromkeys(self.order) for word in self._option(parameter)]
        arguments = [word for parameter in self.command.params for word in self._argument(parameter)]
        told = [*self.verb.split(), "--service", self.service, f"--{ALONE.replace('_', '-')}", *options]
        return (*told, "--", *arguments) if arguments else tuple(told)

    def _option(self, parameter: click.Parameter) -> list[str]:
        if not isinstance(parameter, click.Option) or parameter.name in NOT_PASSED:
            return []
        value = self.typed.get(parameter.name or "")
        if parameter.is_flag:
            return [parameter.secondary_opts[0] if value is False else parameter.opts[0]]
        values = value if isinstance(value, list) else [value]
        return [word for each in values for word in (parameter.opts[0], str(each))]

    def _argument(self, parameter: click.Parameter) -> list[str]:
        if not isinstance(parameter, click.Argument) or parameter.name in NOT_PASSED:
            return []
        value = self.context.params.get(parameter.name or "")
        return [value] if isinstance(value, str) else list(value or ())


def _over(call: _Call, names: Sequence[str], group: Group | None, host: Host) -> None:
    from installer.group import change, facts
    from installer.group.change import changing
    from installer.spec.group import Group, Peer

    for name in ("soak", "bench"):
        if call.context.params.get(name):
            said = tr("--{name} looks at one host, and would take back a change on it alone", name=name)
            raise UsageError(said, tr("leave it out"))
    known = {peer.name: peer for peer in group.peers} if group else {}
    peers = [known.get(name, Peer(name)) for name in names] or [peer for peer in known.values() if not peer.out]
    report = call.report
    with changing(peers, call.service, call.verb, host, report) as team:
        seen = facts.looks(team)
        settled = change.settle(team, seen, report)
        seen = facts.looks(team) if any(look.group and look.group.change for look in seen.values()) else seen
        if settled is None and not names:
            raise Refused(
                tr("the group is no more: what made it was cut off, and is undone"),
                f"vllm-install deploy --service {call.service} --hosts {','.join(known)}",
            )
        if group and settled and not names:
            change.check_is_of(group, settled, call.service, host)
        mode = call.context.params.get("mode")
        now = settled or Group(_new_id(), (), mode or REPLICAS)
        now = replace(now, peers=_peers(now, peers, seen))
        check_stays(call.service, now, mode, settled)
        if missing := [peer.name for peer in now.serving if peer.name not in {*team.far, *team.lost}]:
            raise UsageError(
                tr("{name} is of this group and not named", name=missing[0]),
                f"vllm-install hosts remove {missing[0]} --service {call.service}",
            )
        VERBS[call.verb](call, now, team, seen)


def check_stays(service: str, now: Group, mode: str | None, settled: Group | None) -> None:
    anew = tr("uninstall it and deploy it anew")
    if settled and mode and mode != settled.mode:
        raise UsageError(tr("{service} is of mode {mode} already", service=service, mode=settled.mode), anew)
    if settled and settled.mode == SPAN and len(now.peers) > len(settled.peers):
        raise UsageError(tr("{service} is one model on its hosts: no other joins them", service=service), anew)


def _new_id() -> str:
    import secrets

    return secrets.token_hex(8)


def _peers(group: Group, named: Sequence[Any], seen: Mapping[str, Look]) -> tuple[Any, ...]:
    from installer.group import facts

    held = {peer.name: peer for peer in group.peers}
    new = [peer for peer in named if peer.name not in held]
    return facts.known((*group.peers, *new), seen)


# What each verb is


def _deploy(call: _Call, group: Group, team: Team, seen: Mapping[str, Look]) -> None:
    """Every host gets the same keys, by their digests: no key travels."""
    from installer.group import facts, watched
    from installer.group.job import Job

    context = call.context
    for name in ("bundle", "plain_api_key"):
        if context.params.get(name):
            option = f"--{name.replace('_', '-')}"
            raise UsageError(tr("{option} is for one host", option=option), tr("deploy each host by itself with it"))
    facts.check(team, seen, call.service, group.id, call.report)
    held, new = _keys(call, seen)
    joined = _span if group.mode == SPAN else _answering
    group, for_all, group_key = joined(call, group, team, seen)
    given = tuple(word for key in held for word in ("--held-key", key))
    more = {name: (*for_all, *(() if look.keys else given)) for name, look in seen.items()}
    environment = {name: os.environ[name] for name in NAMES if os.environ.get(name)}
    job = Job("deploy", call.words, environment=environment, more=more, stages=True, group_key=group_key)
    _carry_out(call, group, job, team, key=new)
    if not call.dry_run:
        watched.watch_together(team, group, call.report, new=[name for name, look in seen.items() if not look.group])


def _answering(
    call: _Call, group: Group, team: Team, seen: Mapping[str, Look]
) -> tuple[Group, tuple[str, ...], str | None]:
    """What makes the hosts answer for one another: the address of each, and a key that nobody types."""
    from installer.base.host import Host
    from installer.group import facts
    from installer.group.reach import understood
    from installer.spec.values import AUTO
    from installer.units.authority import link_key

    typed, there = call.typed.get("gateway_hosts"), [name for name, look in seen.items() if look.gateway]
    if typed is None and not there:
        return group, (), None
    if typed == "":
        return group, ("--gateway-hosts", ""), None
    if typed not in (None, AUTO[0]):
        raise UsageError(
            tr("with --hosts the addresses are found, and not typed"),
            "vllm-install deploy --hosts gpu1,gpu2 --gateway-hosts auto --peer-network 10.0.0.0/24",
        )
    found = dict(zip(seen, facts.meet(team, list(seen), call.context.params["peer_network"]), strict=True))
    peers = tuple(replace(peer, address=found.get(peer.name, peer.address)) for peer in group.peers)
    key = understood(there[0], str, team.one(there[0], "group_key")) if there else link_key(call.service, Host())
    return replace(group, peers=peers), ("--gateway-hosts", ",".join(peer.address for peer in peers)), key


def _span(call: _Call, group: Group, team: Team, seen: Mapping[str, Look]) -> tuple[Group, tuple[str, ...], str | None]:
    """What makes hosts one span, the first time: their addresses, the head's first, and a key that nobody types."""
    import secrets

    from installer.group import facts

    if call.typed.get("gateway_hosts"):
        raise UsageError(tr("--gateway-hosts is for hosts that each serve by themselves"), tr("leave it out"))
    if group.epoch:
        return group, (), None
    meeting = facts.meet(team, [peer.name for peer in group.peers], call.context.params["peer_network"])
    return group, ("--group-hosts", ",".join(meeting)), secrets.token_hex(32) + "\n"


def _keys(call: _Call, seen: Mapping[str, Look]) -> tuple[tuple[str, ...], str | None]:
    """Those that a host without the service is to have, and one that nobody has seen yet."""
    from installer.spec import keys
    from installer.verbs.options import key_choice

    there = {look.keys for look in seen.values() if look.keys}
    if len(there) > 1:
        raise Refused(
            tr("{service} is on several of these hosts already, with different keys", service=call.service),
            tr("uninstall all but one of them, or choose another name with --service"),
        )
    given = key_choice(call.context.params).given
    if there:
        if given:
            raise UsageError(tr("the service has a key"), f"vllm-install set-apikey - --service {call.service}")
        return there.pop(), None
    new = None if given else keys.generate(call.service)
    return (keys.Key(keys.DEFAULT, keys.digest(given or new or "")).argument,), new


def _change(call: _Call, group: Group, team: Team, seen: Mapping[str, Look]) -> None:
    from installer.group.job import Job

    stages = any(parameter.name == STAGE for parameter in call.command.params)
    _carry_out(call, group, Job(call.what, call.words, stages=stages, looks=call.verb != "set-context"), team)


def _set_apikey(call: _Call, group: Group, team: Team, seen: Mapping[str, Look]) -> None:
    from installer.group.job import Job
    from installer.spec import keys

    key, file = call.context.params["key"], call.context.params["file"]
    if key is not None and file is not None:
        raise UsageError(
            tr("a key on the command line and one in a file contradict each other"), tr("give one of them")
        )
    typed = file.read() if file is not None else sys.stdin.read() if key == "-" else key
    text = keys.check_plain(typed.strip()) if typed is not None else keys.generate(call.service)
    name = keys.check_name(call.context.params["name"])
    words = (*call.words, "--", "-")
    job = Job(f"set-apikey {name}", words, text=text, looks=False, of_keys=True)
    _carry_out(call, group, job, team, key=None if typed is not None else text)


def _everywhere(call: _Call, group: Group, team: Team, seen: Mapping[str, Look]) -> None:
    """What no host takes back because another cannot be asked: a key that leaked is revoked wherever it can be."""
    from installer.group import change
    from installer.group.job import Job
    from installer.group.reach import raise_all

    change.everywhere(team, list(team.far), Job(call.what, call.words))
    raise_all(team.lost.values())
    _show(call, group, {}, None)


def _uninstall(call: _Call, group: Group, team: Team, seen: Mapping[str, Look]) -> None:
    from installer.group import change
    from installer.group.job import Job

    change.check_all_there(team, group)
    there = [name for name, look in seen.items() if look.group]
    if not call.dry_run:
        agree(tr("Remove {service} from {hosts}?", service=call.service, hosts=", ".join(there)), (), yes=call.yes)
    words = (*call.words, "--dry-run", *call.format) if call.dry_run else (*call.words, "--yes")
    out = change.everywhere(team, there, Job(call.what, words))
    if call.dry_run:
        _print_ahead(call, out)
        return
    team.each("leave", there)
    _show(call, group, {}, None)


VERBS: dict[str, Callable[[_Call, Group, Team, Mapping[str, Look]], None]] = {
    "deploy": _deploy,
    "set": _change,
    "set-context": _change,
    "upgrade": _change,
    "rollback": _change,
    "set-apikey": _set_apikey,
    "keys revoke": _everywhere,
    "keys limit": _everywhere,
    "uninstall": _uninstall,
}


# The result


def _carry_out(call: _Call, group: Group, job: Job, team: Team, key: str | None = None) -> None:
    from installer.base.host import Host
    from installer.group import change, facts

    change.check_all_there(team, group)
    if call.dry_run:
        _print_ahead(call, change.plan(team, group, job, Host(), *call.format))
        return
    after = change.run(team, group, job, Host(), call.report)
    _show(call, after, facts.looks(team), key)


def _print_ahead(call: _Call, out: Mapping[str, str]) -> None:
    if call.as_json:
        from installer.group.reach import data_of

        print_json({"service": call.service, "hosts": {name: data_of(name, text) for name, text in out.items()}})
        return
    for name, text in out.items():
        for line in text.splitlines():
            click.echo(tr("{what}: {why}", what=name, why=one_line(line)))


def _show(call: _Call, group: Group, seen: Mapping[str, Look], key: str | None) -> None:
    if call.as_json:
        hosts = {name: {"model": at.model, "engine": at.engine, "active": at.active} for name, at in seen.items()}
        print_json({"service": call.service, "hosts": hosts, "api_key": key})
    else:
        names = ", ".join(peer.name for peer in group.serving)
        click.echo(tr("{service}: {what} is done on {hosts}", service=call.service, what=call.what, hosts=names))
        if key:
            click.echo(tr("\n  API key  {key}   (shown only now; keep it)", key=key))
    sys.stdout.flush()
