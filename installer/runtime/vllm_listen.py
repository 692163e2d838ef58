"""Becomes `vllm serve` on the socket that the launcher listens on: whatever binds the service's port gets that socket.

vLLM binds its port first and listens last, minutes later; in between anybody on the host could listen there. Stdlib
only, and nothing but `bind` is replaced: where vLLM and its web server call it has moved between versions.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

LISTENER = "LAUNCHER_LISTENER"  # the variable with the descriptor
READY, GO = "LAUNCHER_READY", "LAUNCHER_GO"  # those of an engine that is prepared and waits: what it says, and hears


def hand_in(listener: int) -> None:
    """Were this ever missed, bind would fail, because the port is taken: no service, but no open door either."""
    os.set_inheritable(listener, False)
    with socket.socket(fileno=os.dup(listener)) as held:
        family, port = held.family, held.getsockname()[1]
    bind = socket.socket.bind

    def bind_or_take(self: socket.socket, address: Any, /) -> None:
        if self.family != family or self.type != socket.SOCK_STREAM or address[1] != port:
            bind(self, address)
            return
        socket.socket.bind = bind  # type: ignore[method-assign]
        os.dup2(listener, self.fileno(), inheritable=False)
        os.close(listener)

    socket.socket.bind = bind_or_take  # type: ignore[assignment, method-assign]


if __name__ == "__main__":
    if LISTENER in os.environ:  # one that has no API is given none
        hand_in(int(os.environ.pop(LISTENER)))
    import vllm_door  # type: ignore[import-not-found]

    vllm_door.hand_on()
    import vllm_start  # type: ignore[import-not-found]

    forks = vllm_start.shorten(sys.argv[1:])
    if READY in os.environ:
        turn = vllm_start.Turn(int(os.environ.pop(READY)), int(os.environ.pop(GO)))
        vllm_start.stand_by(sys.argv[1:], turn, forks=forks)
    from vllm.entrypoints.cli.main import main  # type: ignore[import-not-found]

    main()
