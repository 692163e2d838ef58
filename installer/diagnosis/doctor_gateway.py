"""What doctor looks at where a service has replicas: the gateway before them, and whom it lets requests go to."""

from __future__ import annotations

from collections.abc import Iterator

from installer.base.language import tr
from installer.checks.gateway import SOON
from installer.diagnosis.finding import NOTE, Finding
from installer.diagnosis.scene import Scene
from installer.runtime import vllm_certificate
from installer.runtime.vllm_text import one_line
from installer.spec.group import load_group
from installer.units.api import NoAnswer
from installer.units.gateway import certificate_files


def check_gateway(scene: Scene) -> Iterator[Finding]:
    """Replicas that serve, and whom nobody asks for want of a gateway."""
    look = f"sudo journalctl -u {scene.service} -n 200"
    if not any(replica.serves for replica in scene.replicas):
        return
    if scene.active in ("inactive", "failed"):
        cause = tr("the gateway does not run: nobody comes to the replicas, which serve")
        evidence = one_line(f"{scene.member.name}: {scene.active} ({scene.unit.get('SubState', '')})")
        yield Finding("gateway-down", cause, evidence, (f"sudo systemctl start {scene.service}", look))
    elif scene.serves and scene.is_root:
        if scene.gateway is None:
            cause = tr("the gateway does not say to whom it gives requests")
            yield Finding("gateway-silent", cause, str(scene.layout.run_dir), (look,), NOTE)
        elif any(member.is_up for member in scene.gateway.members.values()):
            yield from _check_answer(scene, look)


def _check_answer(scene: Scene, look: str) -> Iterator[Finding]:
    api = scene.api()
    try:
        status = api.ask("GET", "/v1/models" if scene.probe_key else "/health").status
    except NoAnswer as error:
        cause = tr("the gateway runs, but does not answer")
        yield Finding("gateway-no-answer", cause, one_line(str(error)), (look,))
        return
    if status != 200:
        cause = tr("replicas serve, but not through the gateway")
        yield Finding("gateway-no-answer", cause, tr("{url} answers {status}", url=api.url, status=status), (look,))


def check_others(scene: Scene) -> Iterator[Finding]:
    """Hosts that answer for this one, and are not reached."""
    if scene.gateway is None:
        return
    group = load_group(scene.host, scene.layout)
    out = {peer.address for peer in group.peers if peer.out} if group else set()
    for address, state in scene.gateway.others.items():
        if address not in out and not state.is_up and "/" not in state.status:  # DOWN 1/2 is on its way up
            cause = tr("the gateway does not reach that of the host at {address}", address=address)
            look = f"sudo vllm-install hosts --service {scene.service}"
            yield Finding("gateway-apart", cause, one_line(f"{state.status} {state.check}"), (look,))


def check_certificate(scene: Scene) -> Iterator[Finding]:
    """That of TLS=self: `deploy` renews it, and nobody else. One of an admin's own is looked at as `deploy` would."""
    files = certificate_files(scene.settings, scene.layout)
    if files is None or scene.settings.tls_cert or not scene.is_root:
        return
    try:
        left = vllm_certificate.look(*(str(scene.host.at(path)) for path in files)).days_left
    except vllm_certificate.Unfit as unfit:
        cause = tr("the certificate {path} cannot serve", path=files[0])
        yield Finding("tls", cause, tr(str(unfit)), (scene.deploy,))
        return
    if left < SOON:
        cause = tr("the certificate {path} expires in {days} days", path=files[0], days=left)
        yield Finding("tls", cause, tr("clients refuse one that has expired"), (scene.deploy,), NOTE)


def check_replica(scene: Scene) -> Iterator[Finding]:
    """One that serves, and to which the gateway gives no request."""
    gateway = scene.whole.gateway if scene.whole else None
    state = gateway.members.get(scene.number) if gateway else None
    if state is None or state.is_up or "/" in state.status or not scene.serves:  # DOWN 1/2 is on its way up
        return
    evidence = one_line(f"{state.status} {state.check}")
    if state.is_out:
        cause = tr("the gateway gives it no requests: it was taken out, and nobody brought it back")
        yield Finding("replica-out", cause, evidence, (scene.deploy,))
    else:
        cause = tr("it serves, but the gateway does not reach it")
        has_door = scene.host.is_socket(scene.layout.door(scene.number))
        looked = (
            f"sudo journalctl -u {scene.service} -n 200" if has_door else f"sudo systemctl restart {scene.member.stem}"
        )
        yield Finding("replica-unreached", cause, evidence, (looked,))
