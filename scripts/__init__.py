"""What the Makefile's tasks run."""
