"""The virtual environments that vLLM runs in."""
