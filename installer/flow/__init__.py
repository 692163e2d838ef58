"""Changes of a host, from what was asked to what was proved: resolve, plan, apply, prove, remember, undo."""
