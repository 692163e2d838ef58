"""How much memory that is."""

MIB = 1024**2
GIB = 1024**3
