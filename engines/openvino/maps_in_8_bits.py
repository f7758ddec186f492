"""An 8-bit graph in the form in which OpenVINO writes each map once, in 8 bits.

Left to itself, it writes a bottleneck's last map in 16 or 32 bits, and reads it to add what the bottleneck adds; the
same where a map is averaged for FCU-down. docs/quantizing.md has what both rewrites gain.
"""

from __future__ import annotations

import numpy as np

from .eight_bits import constant
from .runtime import ov

FROM_NUMBERS = {"Convert", "Multiply", "Subtract"}  # from 8-bit numbers to what they stand for
STEPS = 10_000_001  # in a range: odd, as 0 is one, and fewer than float32 tells apart


def add_in_convolutions(model: ov.Model) -> int:
    """Lets convolutions in 8 bits add what is added to them, before they write. Returns how many.

    OpenVINO does that behind a bias or a FakeQuantize, and the scale of 8-bit products is neither. So a FakeQuantize is
    put there, which changes nothing: its steps are thousands of times as fine as the result's, and beyond its range the
    result is cut off anyway. Where OpenVINO adds in the convolution, it leaves out its rounding.
    """
    places = 0
    for node in model.get_ordered_ops():
        most = _largest_read(node) if node.get_type_name() == "Add" else None
        if most is None:
            continue
        for product, added in ((0, 1), (1, 0)):
            largest = _largest(node.input_value(added))
            if largest is not None and _is_convolution(node.input_value(product)):
                end = np.float32(most + largest)
                fine = ov.opset13.fake_quantize(node.input_value(product), *(-end, end) * 2, STEPS)
                node.input(product).replace_source_output(fine.output(0))
                places += 1
                break
    return places


def average_in_8_bits(model: ov.Model) -> int:
    """Lets averages read the 8-bit numbers that the next product reads, where nothing else reads the map. Returns how
    many. An average's error is that of 4 to 16 roundings, which even out.
    """
    places = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() == "AvgPool":
            readers = _readers(node.input_value(0).get_node())
            others = [reader for reader in readers if reader.get_type_name() != "AvgPool"]
            if len(others) == 1 and _keeps_its_range(others[0]):
                node.input(0).replace_source_output(others[0].output(0))
                places += 1
    return places


def _is_convolution(value: ov.Output) -> bool:
    """Whether it is a convolution of 8-bit weights with its bias, and read once."""
    bias = value.get_node()
    if bias.get_type_name() != "Add" or len(value.get_target_inputs()) != 1:
        return False
    convolution = bias.input_value(0).get_node()
    return convolution.get_type_name() == "Convolution" and constant(convolution.input_value(1)) is None


def _largest_read(addition: ov.Node) -> float | None:
    """The largest magnitude that is read of a sum behind ReLU; None if it is read otherwise than in 8 bits."""
    readers = _readers(addition)
    if [reader.get_type_name() for reader in readers] != ["Relu"]:
        return None
    found = [_range(reader) for reader in _readers(readers[0])]
    return None if None in found else max(filter(None, found), default=None)


def _largest(value: ov.Output) -> float | None:
    """The largest magnitude of a value that is 8-bit numbers at a scale; None if it is not."""
    node = value.get_node()
    while node.get_type_name() in FROM_NUMBERS:
        node = node.input_value(0).get_node()
    return _range(node)


def _range(node: ov.Node) -> float | None:
    """The largest magnitude that a FakeQuantize keeps; None if it is something else."""
    limits = _limits(node)
    return max(float(np.abs(limit).max()) for limit in limits[:2]) if limits else None


def _keeps_its_range(node: ov.Node) -> bool:
    """Whether it is a FakeQuantize whose results are at the scale of what it reads."""
    limits = _limits(node)
    return bool(limits) and all((read == written).all() for read, written in zip(limits[:2], limits[2:], strict=True))


def _limits(node: ov.Node) -> list[np.ndarray]:
    """The ends of what a FakeQuantize reads and of what it writes; none if they are computed, or it is none."""
    if node.get_type_name() != "FakeQuantize":
        return []
    limits = [limit.data for limit in map(constant, node.input_values()[1:]) if limit is not None]
    return limits if len(limits) == 4 else []


def _readers(node: ov.Node) -> list[ov.Node]:
    return [target.get_node() for target in node.output(0).get_target_inputs()]
