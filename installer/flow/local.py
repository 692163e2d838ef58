"""Weights in a directory of the user's own: nobody promised that it stays as it was, so it is checked every time."""

from __future__ import annotations

from installer.base.host import Host
from installer.base.language import tr
from installer.model.checkpoint import check_access, check_directory
from installer.spec.model import Model, ModelError
from installer.spec.settings import Settings
from installer.units.render import HIDDEN


def check_local(model: Model, settings: Settings, host: Host) -> None:
    if model.source != "local":
        return
    with_pickles = settings.model in settings.allow_pickle
    problems = check_directory(host.at(model.path), with_pickles=with_pickles)
    problems += check_access(model.path, host)
    if str(model.path).startswith(HIDDEN):
        hidden = model.path.parents[-2]
        problems.append(tr("the service's sandbox hides {path}; move the model, for example to /srv", path=hidden))
    if problems:
        raise ModelError(
            tr("the model in {path} cannot be served: {problems}", path=model.path, problems=tr("; ").join(problems)),
            tr("complete the directory, or make it readable for the service's user, and run the command again"),
        )
