"""The GPU suite: tests, then benchmarks, on a bare machine with CUDA, PyTorch and Triton. Run by `make gpu`.

__main__     the command line and what it prints
stages       what is run and measured, each part in a process of its own, and for how long
worker       that process: one of the tasks in facts, points and kernels
results      the result file, merged
tables       the same for people
"""
