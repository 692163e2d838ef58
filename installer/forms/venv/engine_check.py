"""Run by a new engine's own Python: import what a start of its server imports.

Doubles as the compiler: what is imported here leaves its bytecode in the engine, which the service cannot
write. Usage: engine_check.py PACKAGE MODULE[:ATTRIBUTE]... [-- MODULE...]; a module behind `--` may be absent or fail.
"""

import contextlib
import importlib
import importlib.metadata
import operator
import os
import sys
import traceback


def main(arguments: list[str]) -> int:
    package, *modules = arguments
    split = modules.index("--") if "--" in modules else len(modules)
    try:
        importlib.metadata.version(package)  # every command of it asks for that first
        for name in modules[:split]:
            module, _, attribute = name.partition(":")
            found = importlib.import_module(module)
            if attribute:
                operator.attrgetter(attribute)(found)
    except BaseException:
        # A wheel may also exit or be interrupted on import; whatever it was, this engine cannot start.
        traceback.print_exc()
        return 1
    for name in modules[split + 1 :]:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # tearing down torch's modules takes longer than a second and proves nothing
