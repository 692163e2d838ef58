"""Everything that knows SGLang's words: flags, packages, log, metrics."""
