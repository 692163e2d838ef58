"""Where weights come from, how they get here, and what lies in the cache."""
