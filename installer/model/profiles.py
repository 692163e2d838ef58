"""What a model can do besides text, and which of vLLM's parsers understand it: data, matched against its own files.

A family is told by the architecture in config.json, what it writes by its chat template: a fine-tune keeps the one and
may change the other, so the template decides, and the name decides nothing.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from installer.base import datafile
from installer.base.assets import DATA
from installer.base.datafile import DataError, Section
from installer.base.errors import UsageError
from installer.base.language import mark, tr
from installer.families.known import family_of, label
from installer.model.model_about import About
from installer.runtime import vllm_flags
from installer.spec.profile import Profile
from installer.spec.settings import Settings

# A chat template that shows the tools to the model has them in a variable of this name.
EXPRESSION = re.compile(r"\{[{%]([^}]*)")  # once over the text, however many are opened and never closed
TOOLS_VARIABLE = re.compile(r"(?<![\w.'\"\[])tools\b")
TEMPLATE_NEEDED = mark(  # kept in the state
    "it can call tools, but its chat template does not show them to it: give one that does, -- --chat-template FILE"
)
IMAGES = ("vision_config", "vision_encoder", "img_processor", "visual")


@dataclass(frozen=True)
class ParserChoice:
    """A parser, and what of a chat template says that it is the right one."""

    parser: str
    holds: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    no_template: bool = False  # vLLM knows the format without one

    def fits(self, template: str) -> bool:
        if self.no_template or not template:
            return self.no_template and not template
        return all(mark in template for mark in self.holds) and not any(mark in template for mark in self.lacks)


@dataclass(frozen=True)
class ProfiledModel:
    """A published model, with as much of its config.json as the memory estimate reads."""

    id: str
    parameters: int
    bytes: int
    config: dict[str, object]


@dataclass(frozen=True)
class Family:
    name: str
    architectures: tuple[str, ...] = ()
    context: int = 0  # what most uses of it want, and `models recommend` assumes
    tools: tuple[ParserChoice, ...] = ()
    reasoning: tuple[ParserChoice, ...] = ()
    models: tuple[ProfiledModel, ...] = ()


@dataclass(frozen=True)
class Profiles:
    families: tuple[Family, ...]
    formats: Family  # what a template says of any architecture

    def family_of(self, architectures: Sequence[str]) -> Family | None:
        return next((f for f in self.families if not set(architectures).isdisjoint(f.architectures)), None)

    def parsers(self, sort: str) -> set[str]:
        """Every parser that the data names: of `tools` or of `reasoning`."""
        return {choice.parser for family in (*self.families, self.formats) for choice in getattr(family, sort)}


def of(about: About, vllm_args: Sequence[str] = ()) -> Profile:
    """The profile of a model; a chat template given by flag is taken to show tools."""
    known = load_profiles()
    family = known.family_of(about.architectures) or Family("")
    own_template = "--chat-template" in vllm_flags.given(vllm_args)
    in_template = any(TOOLS_VARIABLE.search(found[1]) for found in EXPRESSION.finditer(about.template))
    shows_tools = own_template or not about.template or in_template
    tool_parser = _first((*family.tools, *known.formats.tools), about.template)
    return Profile(
        family=family.name,
        tool_parser=tool_parser if shows_tools else None,
        reasoning_parser=_first((*family.reasoning, *known.formats.reasoning), about.template),
        takes_images=any(about.config.get(name) for name in IMAGES),
        needs=(TEMPLATE_NEEDED,) if tool_parser and not shows_tools else (),
    )


def _first(choices: Sequence[ParserChoice], template: str) -> str | None:
    return next((choice.parser for choice in choices if choice.fits(template)), None)


def check_names(settings: Settings) -> None:
    """Refuse a parser that vLLM does not have: vLLM itself would say so only when it starts."""
    family = family_of(settings)
    known = family.abilities()
    if family.version(settings) != known.version:
        return  # what another version has is not known here
    for option, asked, names, plugin in (
        ("--tool-call-parser", settings.tool_call_parser, known.tool_parsers, "--tool-parser-plugin"),
        ("--reasoning-parser", settings.reasoning_parser, known.reasoning_parsers, "--reasoning-parser-plugin"),
    ):
        if asked in ("auto", "none", *names) or plugin in vllm_flags.given(settings.vllm_args):
            continue
        near = difflib.get_close_matches(asked, names, n=3, cutoff=0.5)
        raise UsageError(
            tr("{option} {asked}: {engine} has no such parser", option=option, asked=asked, engine=label(settings))
            + (tr("; did you mean {near}?", near=tr(" or ").join(near)) if near else ""),
            tr("auto (the default) chooses by the model, none has none; parsers: {names}", names=", ".join(names)),
        )


def chosen(profile: Profile, tool_parser: str, reasoning_parser: str) -> Profile:
    """The profile with what the user asked for: auto keeps what was found, none takes it away."""

    def settle(found: str | None, asked: str) -> str | None:
        return found if asked == "auto" else None if asked == "none" else asked

    return replace(
        profile,
        tool_parser=settle(profile.tool_parser, tool_parser),
        reasoning_parser=settle(profile.reasoning_parser, reasoning_parser),
    )


# The data


@functools.cache
def load_profiles() -> Profiles:
    return parse(datafile.read(DATA / "profiles.json", "families formats"))


def parse(section: Section) -> Profiles:
    """The data, checked to the last field."""
    families = tuple(
        _family(one) for one in section.sections("families", "name architectures context", "tools reasoning models")
    )
    formats = Section.of("formats", section.content["formats"], "tools reasoning")
    seen: set[str] = set()
    for family in families:
        for name in (family.name, *family.architectures, *(model.id for model in family.models)):
            if name in seen:
                raise DataError(section.where, tr("{name} is in it twice", name=name))
            seen.add(name)
    return Profiles(families, Family("", tools=_choices(formats, "tools"), reasoning=_choices(formats, "reasoning")))


def _family(section: Section) -> Family:
    section = Section(section.text("name"), section.content)
    family = Family(
        name=section.text("name"),
        architectures=section.texts("architectures"),
        context=section.number("context"),
        tools=_choices(section, "tools"),
        reasoning=_choices(section, "reasoning"),
        models=tuple(_model(one) for one in section.sections("models", "id parameters bytes config")),
    )
    for model in family.models:
        named = model.config.get("architectures")
        if not isinstance(named, list) or set(named).isdisjoint(family.architectures):
            raise DataError(section.where, tr("{model} has none of its architectures", model=model.id))
    return family


def _choices(section: Section, name: str) -> tuple[ParserChoice, ...]:
    return tuple(
        ParserChoice(one.text("parser"), one.texts("holds"), one.texts("lacks"), one.flag("no_template"))
        for one in section.sections(name, "parser", "holds lacks no_template")
    )


def _model(section: Section) -> ProfiledModel:
    return ProfiledModel(
        id=section.text("id"),
        parameters=section.number("parameters"),
        bytes=section.number("bytes"),
        config=dict(section.mapping("config")),
    )
