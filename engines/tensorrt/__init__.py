"""TensorRT and TensorRT-RTX."""

FLAVORS = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}  # what they are called
