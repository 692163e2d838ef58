"""Run inside a machine: install the engine that `deploy --engine cpu` would, without deploying anything.

build_engine.py [FAMILY FOLDER]
"""

import sys

from installer.base.host import Host
from installer.base.layout import Layout
from installer.base.report import Lines
from installer.checks import facts, preflight
from installer.forms.venv import engines
from installer.spec.settings import Settings

family, folder = sys.argv[1:3] if sys.argv[1:] else (Settings.engine_family, None)
settings = Settings(engine="cpu", engine_family=family, find_links=folder)
host, layout, report = Host(), Layout("qwen3vl"), Lines()
interpreter = preflight.choose_interpreter(settings, facts.gather(host, settings, layout), "cpu")
assert interpreter is not None, "no Python that a service user can reach"
engine = engines.resolve(settings, "cpu", interpreter.path, host, report)
if not engines.is_complete(host, layout, engine.id):
    engines.InstallEngine(engine, settings, layout).apply(host, report)
print(engine.id)
