"""Run by an engine's own Python: compile FlashInfer's sampler into the service's cache; that needs no GPU."""

from flashinfer.jit.sampling import gen_sampling_module

gen_sampling_module().build_and_load()
