"""Engines: the inference graph exported to ONNX and compiled by a runtime of its own."""
