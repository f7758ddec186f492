"""The lowered network that every engine computes."""
