"""The GPU suite: one run that checks and measures on a bare machine with CUDA, PyTorch and Triton. See `make gpu`.

__main__     the command line
steps        what a run consists of, in order; checking, pytest_runs, profiling and tuning are the longer ones
session      a run's time, its processes at work, its rows
processes    process groups with limits; watchdog ends what a killed suite leaves
results      the result file, merged and resumed
tables       the same for people
worker       a process of the suite: one task of facts, checks, points, kernels, candidates or sanitize
"""
