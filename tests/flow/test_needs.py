"""What a host has of a model, said without asking anybody."""

from __future__ import annotations

from installer.base.host import Host
from installer.flow import needs
from tests.kit.hub import Hub
from tests.kit.weights import REPO, WANTED, checkpoint, pull, settings


def test_a_host_that_is_not_to_serve_it_asks_no_hub(server: Hub, host: Host) -> None:
    """It may be the admin's own machine, and what it has is newer or older than what a hub would say."""
    server.add(REPO, checkpoint())
    model = pull(server, host)
    server.add(REPO, checkpoint(seed=2))
    held = needs.held(settings(server), host)
    assert held
    assert (held.commit, held.missing, {file.name for file in held.files}) == (model.commit, 0, WANTED)
