"""How much memory a model takes, and so which context fits."""
