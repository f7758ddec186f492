"""Where a batch's time goes: every operation of the CPU's engine is counted, as what it is."""

import pytest
import torch

import conformer_fast as cf
from benchmarks import time_parts
from conformer_fast.engines.onnx.export import onnx_from_model
from conformer_fast.engines.openvino import ir
from conformer_fast.engines.openvino.device import native_precisions
from conformer_fast.inference.lower import lower

SMALL = {"patch_size": 16, "embed_dim": 96, "depth": 3, "num_heads": 2, "num_classes": 10}
EACH = pytest.mark.parametrize("rest", [name for name in native_precisions() if name in ("fp32", "bf16")])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return cf.create_model(cf.ConformerConfig(**SMALL))


@EACH
def test_each_kind_is_as_often_as_the_network_has_it(model, rest, monkeypatch):
    counted = {}
    kind = time_parts._kind

    def counting(run, operations):
        found = kind(run, operations)
        if run.real_time.total_seconds():
            counted.setdefault(found, set()).add((run.node_type, run.node_name))
        return found

    monkeypatch.setattr(time_parts, "_kind", counting)
    made = ir.ir_of(onnx_from_model(lower(model), products="conv").SerializeToString(), rest)
    shares = time_parts._shares(made, rest)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares.keys() == {*time_parts.PARTS[2:]}
    depth = SMALL["depth"]
    products = [name for kind, name in counted[time_parts.PRODUCTS] if kind == "Convolution"]
    assert len(products) == 4 * depth + depth - 1  # queries' to the second of the MLP, and FCU-up's
    assert len(counted[time_parts.NORMS]) == 2 * depth + depth - 1 + 1  # FCU-down's, and the one before the head
    bottlenecks = 3 * (2 * depth - 1) + 4  # four change the channels or the size
    assert len(counted[time_parts.CONVOLUTIONS]) == 2 + bottlenecks + depth - 1  # the stem, patches, FCU-down's
    assert len(counted[time_parts.ATTENTION]) >= depth


def test_a_row_has_all_parts(monkeypatch, tmp_path):
    monkeypatch.setattr(time_parts, "ROUNDS", 1)
    monkeypatch.setattr(cf, "create_model", lambda variant, create=cf.create_model: create(cf.ConformerConfig(**SMALL)))
    files = [tmp_path / f"{index}.jpg" for index in range(2)]
    for file in files:
        time_parts.photo(300, 200).save(file)
    (row,) = time_parts.rows(["small"], files, "fp32")
    assert row["variant"] == "small"
    assert [*row["seconds"]] == [*time_parts.PARTS]
    assert all(seconds > 0 for seconds in row["seconds"].values())
