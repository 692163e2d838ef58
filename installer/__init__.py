"""Install, prove and run vLLM as a hardened systemd service."""

__version__ = "0.1.0"
