"""A model over HTTP: addresses, batches of all clients, metrics."""
