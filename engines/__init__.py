"""What runs a model here, one folder a backend: base.py says what a backend is, registry.py which there are."""
