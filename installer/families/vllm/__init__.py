"""Everything that knows vLLM's words: flags, packages, log, memory options."""
