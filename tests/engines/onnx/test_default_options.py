"""What a user's own ONNX Runtime makes of an exported graph, with the options that it has by default."""

import onnxruntime
import pytest
import torch

import conformer_fast as cf
from conformer_fast.calibration.noise import quantization_of_noise
from conformer_fast.engines.onnx import IMAGES
from conformer_fast.engines.onnx.graph import typed_graph
from conformer_fast.engines.onnx.runtime import run_graph
from conformer_fast.model.distance import ALLOWANCE, FLOOR, relative_error
from conformer_fast.model.names import PRECISIONS
from conformer_fast.model.outputs import LOGITS


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_optimizer_leaves_it_right(precision):
    """Of the packaged model, whose weights are trained; it errs as much as the graph run node by node may."""
    model = cf.create_model("digits", "packaged")
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    graph = typed_graph(model, LOGITS, precision, quantization_of_noise(model, precision, 64))
    try:
        as_written = run_graph(graph, images, LOGITS)
    except cf.BackendError as error:
        assert precision == "bf16"
        pytest.skip(str(error))
    optimized = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    found = optimized.run(list(LOGITS), {IMAGES: images.numpy()})
    with torch.no_grad():
        exact = model(images)
    for name, mine, written in zip(LOGITS, map(torch.from_numpy, found), as_written, strict=True):
        true = getattr(exact, name)
        allowed = ALLOWANCE * relative_error(written, true) + FLOOR[precision]
        assert relative_error(mine, true) <= allowed, name


def test_a_second_opinion_takes_as_many_threads_as_pytorch(small_model, monkeypatch):
    asked, session = [], onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda graph, options, **rest: asked.append(options.intra_op_num_threads) or session(graph, options, **rest),
    )
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    run_graph(typed_graph(small_model, LOGITS, "fp32", None), torch.zeros(1, 3, 32, 32), LOGITS)
    assert asked == [3]
