"""How an engine gets onto the host and what starts it: a package for each way."""
