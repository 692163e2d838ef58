"""Data: settings, keys, what is known of a host, a model, an engine, a service; read and written, no more."""
