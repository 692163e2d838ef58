"""What clients will ask of a model, asked: of a running service or of a throwaway server."""
