"""What is particular to one engine's program: a package for each."""
