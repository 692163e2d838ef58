"""Stands in for vLLM in tests; see entrypoints/cli/main.py."""

from importlib.metadata import version

# As in vLLM: of no use under another distribution name, which is what an engine of such a wheel has to cure.
__version__ = version("vllm").partition("+")[0]
