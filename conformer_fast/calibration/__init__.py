"""How a model is best put in 8 bits."""
