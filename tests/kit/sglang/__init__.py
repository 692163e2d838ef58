"""A build of the real SGLang for processors, which no index has: its own code, without what needs a GPU."""
