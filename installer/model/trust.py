"""What would run code that came with a model, and whether the user allowed that for this model by name."""

from __future__ import annotations

from collections.abc import Iterator

from installer.base.language import tr
from installer.families.known import family_of
from installer.model import selection
from installer.model.model_about import About
from installer.spec.problem import Problem
from installer.spec.settings import Settings


def check_trust(about: About, settings: Settings) -> Iterator[Problem]:
    """Every reason why serving the model would run its own code unasked."""
    pickles = selection.pickles(about.names)
    if pickles and settings.model not in settings.allow_pickle:
        yield Problem(
            tr("{model} has its weights only as Python pickles ({file})", model=settings.model, file=pickles[0]),
            tr("a pickle can run any code when it is loaded"),
            tr(
                "choose a repository with .safetensors files; or, if you trust who made it: "
                "--allow-pickle {model} (ALLOW_PICKLE)",
                model=settings.model,
            ),
        )
    reasons = _code(about, settings)
    if reasons and settings.model not in settings.trust_remote_code:
        yield Problem(
            tr(
                "{model} needs Python code of its own repository ({files})",
                model=settings.model,
                files=", ".join(reasons),
            ),
            tr("it would run in the service, with all that the service may do"),
            tr(
                "choose a model that vLLM supports itself; or, if you trust who made it: "
                "--trust-remote-code {model} (TRUST_REMOTE_CODE)",
                model=settings.model,
            ),
        )


def _code(about: About, settings: Settings) -> list[str]:
    """The files that name such code where nothing takes its place.

    Many repositories still carry code for models that transformers has had since; that code is then never run.
    """
    known = family_of(settings).abilities()
    family = str(about.config.get("model_type") or "")
    return sorted(
        name
        for name, instead in about.with_code.items()
        if known.own_tokenizers.isdisjoint((family, instead.removesuffix("Fast")))
        if name == "tokenizer_config.json" or family not in known.own_model_types
    )
