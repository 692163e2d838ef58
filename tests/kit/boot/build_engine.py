"""Run inside a machine: install the engine that `deploy --engine cpu` would, without deploying anything."""

from installer.base.host import Host
from installer.base.layout import Layout
from installer.base.report import Lines
from installer.checks import facts, preflight
from installer.forms.venv import engines
from installer.spec.settings import Settings

settings, host, layout, report = Settings(engine="cpu"), Host(), Layout("qwen3vl"), Lines()
interpreter = preflight.choose_interpreter(settings, facts.gather(host, settings, layout), "cpu")
assert interpreter is not None, "no Python that a service user can reach"
engine = engines.resolve(settings, "cpu", interpreter.path, host, report)
if not engines.is_complete(host, layout, engine.id):
    engines.InstallEngine(engine, settings, layout).apply(host, report)
print(engine.id)
