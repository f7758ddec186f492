"""Whether an engine is right, and how fast."""
