"""The verbs: each builds what one function needs, calls it, and renders what it returns."""
