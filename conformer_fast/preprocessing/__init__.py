"""From a picture to the tensor that a model reads."""
