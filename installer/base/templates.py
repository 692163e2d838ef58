"""The templates that come with the tool, for jinja2."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import jinja2

from installer.base.assets import asset_dir

Filter = Callable[..., str]


def template(name: str, filters: Mapping[str, Filter] | None = None) -> jinja2.Template:
    return _environment(tuple((filters or {}).items())).get_template(name)


@cache
def _environment(filters: tuple[tuple[str, Filter], ...]) -> jinja2.Environment:
    """One for all its templates, which it compiles once: a change renders its unit five times and more."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(asset_dir("templates")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 neither units nor settings are HTML; the filters do the escaping
    )
    environment.filters |= dict(filters)
    return environment
