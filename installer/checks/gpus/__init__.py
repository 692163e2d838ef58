"""The GPUs of a host: each vendor is a module that finds them, says what they do, and what keeps them from serving."""
