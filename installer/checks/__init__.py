"""What this host is, and whether it can carry a service."""
