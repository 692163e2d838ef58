"""Prints installer/data/serve_flags.json as the vLLM of this interpreter has it."""

import argparse
import json
import sys

import vllm
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.utils.argparse_utils import FlexibleArgumentParser

serve = ServeSubcommand().subparser_init(FlexibleArgumentParser().add_subparsers())
found: dict[str, object] = {"version": vllm.__version__.partition("+")[0]}
kinds: dict[object, list[str]] = {None: [], "+": [], "?": [], 0: []}
aliases = {}
for action in serve._actions:
    names = [name for name in action.option_strings if name.startswith("--")]
    if not names or isinstance(action, argparse._HelpAction):
        continue
    kinds[action.nargs].append(names[0])
    for name in action.option_strings:
        if name not in (names[0], names[0].replace("--", "--no-", 1)):
            aliases[name] = names[0]
named = zip(("one", "several", "optional", "switches"), kinds.values(), strict=True)
found |= {kind: sorted(flags) for kind, flags in named} | {"aliases": dict(sorted(aliases.items()))}
sys.stdout.write("\n" + json.dumps(found) + "\n")
