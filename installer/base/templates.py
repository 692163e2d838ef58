"""The templates that come with the tool, for jinja2."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jinja2

from installer.base.assets import asset_dir


def template(name: str, filters: Mapping[str, Callable[..., str]] | None = None) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(asset_dir("templates")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 neither units nor settings are HTML; the filters do the escaping
    )
    environment.filters |= dict(filters or {})
    return environment.get_template(name)
