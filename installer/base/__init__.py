"""What everything stands on: files and processes, errors, words for people, paths. Knows nothing of models."""
