"""The pictures of README.md and docs/: a module each, which draws it and says what it shows. `make pictures` draws
all.

What is drawn from sources or stored results is the same whenever and wherever this matplotlib draws it. Lengths are
points; where a picture is as wide as a phone, one is 0.7 pixels.
"""
