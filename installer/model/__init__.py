"""What a model is: its files, its family, its formats; nothing here fetches or serves."""
