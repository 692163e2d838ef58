"""Run by an engine's own Python: compile FlashInfer's sampler into the service's cache; that needs no GPU."""

import importlib

importlib.import_module("flashinfer.jit.sampling").gen_sampling_module().build_and_load()
