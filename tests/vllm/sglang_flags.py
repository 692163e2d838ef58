"""Prints installer/runtime/sglang_flags.json as the SGLang of this interpreter has it."""

import argparse
import json
import sys

import sglang
from sglang.srt.server_args import ServerArgs

KINDS = {"json": ("{}", ("x",)), "float": ("1.5", ("x", "{}")), "int": ("1", ("x", "{}", "1.5"))}


def kind_of(action: argparse.Action) -> str:
    """By what its type takes; "" where that is any text."""

    def takes(text: str) -> bool:
        try:
            convert(text)
        except Exception:
            return False
        return True

    convert = action.type
    if not callable(convert):
        return ""
    return next((kind for kind, (good, bad) in KINDS.items() if takes(good) and not any(map(takes, bad))), "")


parser = argparse.ArgumentParser()
ServerArgs.add_cli_args(parser)
found: dict[str, object] = {"version": sglang.__version__.partition("+")[0]}
kinds: dict[object, list[str]] = {None: [], "+": [], "?": [], 0: []}
aliases, values, choices = {}, {}, {}
for action in parser._actions:
    names = [name for name in action.option_strings if name.startswith("--")]
    if not names or isinstance(action, argparse._HelpAction):
        continue
    kinds["+" if (isinstance(action.nargs, int) and action.nargs > 1) or action.nargs == "*" else action.nargs].append(
        names[0]
    )
    if action.choices:
        choices[names[0]] = sorted(str(choice) for choice in action.choices if choice is not None)
    elif action.nargs != 0 and kind_of(action):
        values[names[0]] = kind_of(action)
    for name in action.option_strings:
        if name not in (names[0], names[0].replace("--", "--no-", 1)):
            aliases[name] = names[0]
named = zip(("one", "several", "optional", "switches"), kinds.values(), strict=True)
found |= {kind: sorted(flags) for kind, flags in named} | {"aliases": dict(sorted(aliases.items()))}
found |= {"values": dict(sorted(values.items())), "choices": dict(sorted(choices.items()))}
sys.stdout.write("\n" + json.dumps(found) + "\n")
