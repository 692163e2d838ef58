"""YAML as every reader takes it: what one of them might not read as text stands in quotes."""

from __future__ import annotations

import re
from collections.abc import Mapping

import yaml

PLAIN = re.compile(r"[A-Za-z/][\w./-]*", re.ASCII)
WORDS = frozenset(("y", "n", "yes", "no", "on", "off", "true", "false", "null"))  # that are no text somewhere


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """A list is indented below its name, as people write it."""
        super().increase_indent(flow, False)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    is_plain = PLAIN.fullmatch(text) and text.lower() not in WORDS
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_plain else '"')


_Dumper.add_representer(str, _text)


def to_yaml(content: Mapping[str, object]) -> str:
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**9)
