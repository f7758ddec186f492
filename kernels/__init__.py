"""Triton kernels of the inference model's operators: one operation a file; `dispatch` chooses what runs a call."""
