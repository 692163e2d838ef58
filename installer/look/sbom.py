"""What a service consists of, as CycloneDX: its engine's packages, the Python that runs them, and the model."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from email.message import Message
from email.parser import Parser
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

from installer.base.errors import Refused
from installer.base.host import Host
from installer.base.language import tr
from installer.base.layout import Layout
from installer.families.known import family_named
from installer.forms.venv.engines import MARKER, is_complete
from installer.spec.engine import Engine, checksums
from installer.spec.model import Model
from installer.spec.records import proved_target

Json = dict[str, Any]


def of_service(service: str, host: Host) -> str:
    """As it was proved. Of the same engine it is the same text, whenever it is asked for."""
    layout = Layout(service)
    target = proved_target(host, layout)
    engine = target.engine
    if engine.image:
        raise Refused(
            tr("{service} is served from a container image: its packages are listed by who made that", service=service),
            f"sudo podman image inspect {engine.image.rpartition(':')[2]}",
        )
    place = layout.engines / engine.id
    if not is_complete(host, layout, engine.id):
        raise Refused(
            tr("the engine {path} is missing or not complete", path=place),
            f"sudo vllm-install deploy --service {service}",
        )
    parts = sorted(_installed(engine, host.at(place)), key=lambda part: part.name)
    known = {part.name: part for part in parts}
    models = [_model(each) for each in target.read]
    named: Json = {
        "type": "application", "bom-ref": "engine", "name": family_named(engine.family).title,
        "version": engine.vllm_version, "description": f"engine {engine.id} of {service}: {engine.kind}",
    }  # fmt: skip
    python: Json = {"type": "platform", "bom-ref": "python", "name": "CPython", "version": _python(host, place)}
    refs = [*(part.ref for part in parts), *(each["bom-ref"] for each in (python, *models))]
    return document(
        int(host.at(place / MARKER).stat().st_mtime),
        named,
        [*(component(part) for part in parts), python, *models],
        [{"ref": "engine", "dependsOn": refs}, *(needs(part, known) for part in parts)],
    )


def document(moment: int, what: Json, components: Sequence[Json], dependencies: Sequence[Json]) -> str:
    listing = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment)), "component": what},
        "components": components,
        "dependencies": dependencies,
    }
    return json.dumps(listing, indent=1) + "\n"


# A package of Python's


@dataclass(frozen=True)
class Part:
    about: Message  # its METADATA
    wheels: Mapping[str, Sequence[str]]  # what it came by: a file's name or a place, and the SHA-256 that it may have

    @property
    def name(self) -> str:
        return _canonical(self.about["Name"])

    @property
    def ref(self) -> str:
        """Also where it is had (https://github.com/package-url)."""
        return f"pkg:pypi/{self.name}@{quote(self.about['Version'])}"


def component(part: Part, kind: str = "library") -> Json:
    about = part.about
    return {
        "type": kind,
        "bom-ref": part.ref,
        "name": part.name,
        "version": about["Version"],
        "description": about["Summary"] or "",
        "licenses": list(_licences(about)),
        "purl": part.ref,
        "externalReferences": [
            {
                "type": "distribution",
                "url": url,
                "hashes": [{"alg": "SHA-256", "content": digest} for digest in digests],
            }
            for url, digests in part.wheels.items()
        ],
    }


def _licences(about: Message) -> Iterator[Json]:
    """Some packages have a whole text where its name belongs."""
    if said := about["License-Expression"]:
        yield {"expression": said}
        return
    kinds = [line for line in about.get_all("Classifier", []) if line.startswith("License ::")]
    if named := [line for line in (about["License"] or "", *kinds) if line.strip() and "\n" not in line.strip()]:
        yield {"license": {"name": named[0].rpartition(" :: ")[2]}}


def needs(part: Part, known: Mapping[str, Part]) -> Json:
    """Without what nobody asked for: an extra, or what is needed on other systems alone."""
    wanted = set()
    for line in part.about.get_all("Requires-Dist", []):
        requirement, _, marker = line.partition(";")
        if "extra" not in marker and (found := re.match(r"[\w.-]+", requirement)):
            wanted.add(_canonical(found[0]))
    return {"ref": part.ref, "dependsOn": [known[name].ref for name in sorted(wanted & known.keys())]}


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _installed(engine: Engine, place: Path) -> Iterator[Part]:
    """Those that lie there, with the checksums that the engine's lock allows."""
    allowed = {package.partition("+")[0]: found for package, found in checksums(engine.lock).items()}
    for found in metadata.distributions(path=[str(path) for path in place.glob("lib/python3*/site-packages")]):
        part = Part(Parser().parsestr(found.read_text("METADATA") or ""), {})
        digests = allowed.get(f"{part.name}=={part.about['Version'].partition('+')[0]}", [])
        yield replace(part, wheels={part.ref: digests} if digests else {})


def _model(model: Model) -> Json:
    """By its name on the hub, where it is from one, at the commit that is served."""
    found: Json = {"type": "machine-learning-model", "bom-ref": f"model:{model.id}", "name": model.repo or model.id}
    if model.commit:
        found |= {"version": model.commit}
        found |= {"purl": f"pkg:huggingface/{quote(model.repo)}@{model.commit}"} if model.source == "hub" else {}
    return found


def _python(host: Host, place: Path) -> str:
    found = re.search(r"^version(?:_info)? *= *(\S+)", host.read(place / "pyvenv.cfg") or "", re.MULTILINE)
    return found[1] if found else ""
