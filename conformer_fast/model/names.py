"""Names that users write, for what must not wait for PyTorch: the command line."""

PRECISIONS = ("fp32", "bf16", "fp16", "int8", "fp8")
IN_8_BITS = ("int8", "fp8")  # those that take a Quantization
