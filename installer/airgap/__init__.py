"""One archive with all that a host without a network needs."""
