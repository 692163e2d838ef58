"""What a model's small files say about it, wherever the model is; on the hub they are fetched before any weight is."""

from __future__ import annotations

from collections.abc import Sequence

from installer.base.host import Host
from installer.base.report import Report
from installer.model import builtin
from installer.model.model_about import SMALL, About, read_directory, read_small, read_texts
from installer.model.plain_file import LONGEST
from installer.spec.model import Model, Origin
from installer.spec.offer import Elsewhere
from installer.spec.settings import Settings
from installer.weights import elsewhere, sources
from installer.weights.addresses import url_of
from installer.weights.download import Blob, fetch_all


def of_model(model: Model, host: Host, settings: Settings, report: Report, caches: Sequence[Elsewhere] = ()) -> About:
    """The same for a model wherever it is: on disk, in the hub (its small files only, checked), or built in."""
    path = host.at(model.path)
    wanted = [file for file in model.files if file.name in SMALL]
    if all((path / file.name).is_file() for file in wanted) and path.is_dir():
        return read_directory(path)
    if model.source == "builtin":
        texts = {name: content.decode() for name, content in builtin.files().items() if name.endswith(".json")}
        return read_texts(texts, texts)
    return read_texts(texts_of(model, host, settings, report, caches), (file.name for file in model.files))


def texts_of(
    model: Model, host: Host, settings: Settings, report: Report, caches: Sequence[Elsewhere] = ()
) -> dict[str, str]:
    """What the small files of a model of a hub say, checked where they do not lie in our own cache."""
    path = host.at(model.path)
    wanted = [file for file in model.files if file.name in SMALL]
    texts = {file.name: read_small(path / file.name) for file in wanted if (path / file.name).is_file()}
    wanted = [file for file in wanted if file.name not in texts]
    held = elsewhere.find(caches, model.origin, host)
    texts |= elsewhere.texts(wanted, held, host) if held else {}
    wanted = [file for file in wanted if file.name not in texts]
    if not wanted:
        return texts
    with host.scratch() as scratch:

        def fetch(origin: Origin) -> dict[str, str]:
            blobs = [
                Blob(f.name, url_of(origin, str(model.commit), f.name), scratch / f.name, f.size, f.digest)
                for f in wanted
                if f.size <= LONGEST
            ]
            with Report().bytes("", 0) as silent:
                fetch_all(blobs, origin, min(len(blobs), settings.download_connections), silent)
            return {blob.name: read_small(blob.path) for blob in blobs}

        return texts | sources.first(sources.of_model(settings, model.source), report, fetch)
