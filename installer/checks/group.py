"""The part of preflight that is about a group: which of its hosts this one is, its key, and what it cannot be with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import Layout
from installer.checks.placement import gpus_of_group
from installer.checks.secret_files import exposed
from installer.runtime.vllm_group import SHORTEST_KEY
from installer.spec.facts import Facts, Peers
from installer.spec.problem import Problem
from installer.spec.settings import PODMAN, Settings


def look(host: Host, settings: Settings) -> Peers:
    interfaces: dict[str, str] = {}
    for card, address in _cards(host):
        interfaces.setdefault(address["local"], card)
    ranks = [rank for rank, address in enumerate(settings.group_hosts) if address in interfaces]
    first = next((interfaces[settings.group_hosts[rank]] for rank in ranks), "")
    return Peers(tuple(ranks), first, _unfit(host, settings.group_key_file or str(Layout(settings.service).group_key)))


def addresses(host: Host) -> list[str]:
    """By which others may reach this host, each with its network: 10.0.0.1/24."""
    return [f"{each['local']}/{each['prefixlen']}" for _, each in _cards(host) if each.get("scope") == "global"]


def _cards(host: Host) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each IPv4 address that this host has, with its interface."""
    with suppress(ValueError, TypeError, KeyError):
        for card in json.loads(host.output("ip", "-json", "-4", "address") or "[]"):
            for address in card["addr_info"]:
                yield card["ifname"], address


def _unfit(host: Host, path: str) -> str:
    if why := exposed(host, path):
        return why
    if host.at(Path(path)).stat().st_size < SHORTEST_KEY:
        return tr("{path}: it is shorter than {least} characters", path=path, least=SHORTEST_KEY)
    return ""


def check_group(settings: Settings, facts: Facts) -> Iterator[Problem]:
    found = facts.peers
    if found is None:
        return
    hosts = ", ".join(settings.group_hosts)
    if len(found.ranks) != 1:
        ours = ", ".join(settings.group_hosts[rank] for rank in found.ranks)
        yield Problem(
            tr("this host has no single place in the group"),
            tr("of {hosts} it has {ours}", hosts=hosts, ours=ours or tr("none")),
            tr("name one address of each host in GROUP_HOSTS, in the network by which they reach each other"),
            id="group",
        )
    if found.unfit:
        yield Problem(
            tr("there is no key of the group"),
            found.unfit,
            tr("the same file on all hosts: umask 077; openssl rand -hex 32 > FILE, and copy it to the others"),
            id="group",
        )
    yield from _check_settings(settings)


def _check_settings(settings: Settings) -> Iterator[Problem]:
    remedy = tr("change it, or serve from one host: GROUP_HOSTS=")
    said = []
    if settings.engine_family != "vllm":
        said.append(
            tr(
                "ENGINE_FAMILY={family}: a group is built on vLLM's way over several hosts",
                family=settings.engine_family,
            )
        )
    if settings.runtime == PODMAN:
        said.append(tr("RUNTIME=podman: the engines of a group are no containers"))
    if settings.replicas > 1:
        said.append(tr("REPLICAS={count}: a group is one engine", count=settings.replicas))
    if not settings.hold:
        said.append(tr("HOLD=0: the head waits for the others, and callers with it"))
    if (count := gpus_of_group(settings)) % len(settings.group_hosts):
        said.append(
            tr(
                "{count} GPUs in all cannot be divided among {hosts} hosts",
                count=count,
                hosts=len(settings.group_hosts),
            )
        )
    for why in said:
        yield Problem(tr("these settings make no group"), why, remedy, id="group")
