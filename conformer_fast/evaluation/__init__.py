"""How often an engine is right on labelled pictures."""
