"""A stand-in for vLLM: the same command line, log lines, routes, exits and faults, started in a tenth of a second."""
