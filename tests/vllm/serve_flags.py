"""Prints installer/runtime/vllm_flags.json as the vLLM of this interpreter has it."""

import argparse
import json
import sys

import vllm
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.utils.argparse_utils import FlexibleArgumentParser

# What tells the kinds of values apart: one that they take, and those that they do not.
KINDS = {
    "json": ("{}", ("x",)),
    "tokens": ("1k", ("x", "{}")),
    "float": ("1.5", ("x", "{}", "1k")),
    "int": ("1", ("x", "{}", "1k", "1.5")),
}


def kind_of(action: argparse.Action) -> str:
    """By what its type takes; "" where that is any text."""

    def takes(text: str) -> bool:
        try:
            convert(text)
        except (ValueError, TypeError, argparse.ArgumentTypeError):
            return False
        return True

    convert = action.type
    if not callable(convert):
        return ""
    return next((kind for kind, (good, bad) in KINDS.items() if takes(good) and not any(map(takes, bad))), "")


serve = ServeSubcommand().subparser_init(FlexibleArgumentParser().add_subparsers())
found: dict[str, object] = {"version": vllm.__version__.partition("+")[0]}
kinds: dict[object, list[str]] = {None: [], "+": [], "?": [], 0: []}
aliases, values, choices = {}, {}, {}
for action in serve._actions:
    names = [name for name in action.option_strings if name.startswith("--")]
    if not names or isinstance(action, argparse._HelpAction):
        continue
    kinds[action.nargs].append(names[0])
    if action.choices:
        choices[names[0]] = [str(choice) for choice in action.choices if choice is not None]
    elif action.nargs != 0 and kind_of(action):
        values[names[0]] = kind_of(action)
    for name in action.option_strings:
        if name not in (names[0], names[0].replace("--", "--no-", 1)):
            aliases[name] = names[0]
named = zip(("one", "several", "optional", "switches"), kinds.values(), strict=True)
found |= {kind: sorted(flags) for kind, flags in named} | {"aliases": dict(sorted(aliases.items()))}
found |= {"values": dict(sorted(values.items())), "choices": dict(sorted(choices.items()))}
sys.stdout.write("\n" + json.dumps(found) + "\n")
