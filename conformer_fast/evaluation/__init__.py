"""How often an engine is right on labeled pictures."""
