"""An engine as a virtual environment: its packages, its toolkit, its Python."""
