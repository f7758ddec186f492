"""Our own code for CPUs, in 8 bits: csrc/int8.h."""
