"""Real TensorRT-RTX without a GPU: no plan can be loaded, and none may crash."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from conformer_fast.engines.tensorrt.flavors import get_flavor
from conformer_fast.model.shapes import Shapes

NEEDS_RTX = pytest.mark.skipif(
    not (find_spec("tensorrt_rtx") or find_spec("tensorrt_rtx_bindings")), reason="needs TensorRT-RTX"
)
LOAD = """
import sys
import torch
from fake_cuda import fake_cuda
from conformer_fast.engines.tensorrt.flavors import EngineError, get_flavor
from conformer_fast.engines.tensorrt.engine import TensorRTEngine

flavor = get_flavor("tensorrt-rtx")
good = open(sys.argv[1], "rb").read()
middle = len(good) // 2
plans = {
    "good": good,
    "cut": good[:middle],
    "last byte missing": good[:-1],
    "longer": good + bytes(8),
    "header only": good[:64],
    "flipped": good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :],
    "header flipped": bytes([good[0] ^ 1]) + good[1:],
    "zeroed": good[:middle] + bytes(len(good) - middle),
    "garbage": bytes(range(256)) * 4000,
    "zeros": bytes(100_000),
    "one byte": b"x",
    "empty": b"",
}
with fake_cuda():
    for name, plan in plans.items():
        try:
            TensorRTEngine(plan, flavor, ["conv_logits"], torch.device("cpu"))
        except EngineError as error:
            print(name, "|", str(error).replace(chr(10), " "))
"""


@pytest.fixture(scope="session")
def small_plan(small_config, tmp_path_factory) -> Path:
    """The small model in fp32, built without a GPU."""
    import lookalikes

    from conformer_fast import Conformer
    from conformer_fast.engines.onnx.export import onnx_from_model
    from conformer_fast.engines.tensorrt.plan import engine_from_onnx
    from conformer_fast.inference.lower import lower

    torch.manual_seed(0)
    model = lower(lookalikes.fill(Conformer(small_config)).eval())
    profile = Shapes((1, 2, 8), (32, 32, 64), (32, 32, 64))
    onnx = onnx_from_model(model).SerializeToString()
    path = tmp_path_factory.mktemp("plan") / "model.plan"
    path.write_bytes(engine_from_onnx(onnx, [profile], get_flavor("tensorrt-rtx"), ["sm86"], "fp32"))
    return path


@NEEDS_RTX
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU may load a plan that is only flipped")
def test_rtx_without_a_gpu_refuses_every_plan_and_says_why(small_plan):
    """In a process of its own: a crash is this test's failure."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, small_plan],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    said = dict(line.split(" | ", 1) for line in done.stdout.splitlines())
    assert len(said) == 12
    for name, message in said.items():
        assert "the log of TensorRT ends with" in message, name
    for name in ("cut", "last byte missing", "longer"):
        assert "plan.header.size == blobSize" in said[name]
    for name in ("header flipped", "garbage", "zeros"):
        assert "header.magicTag == kEXPECTED_MAGIC_TAG" in said[name]
    assert "empty memory buffer" in said["empty"]
    assert "CUDA" in said["good"]
