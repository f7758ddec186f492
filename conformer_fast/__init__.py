"""conformer_fast: the vision Conformer (arXiv 2105.03889), fast and verified against a reference.

import conformer_fast as cf

model = cf.create_model("small-p16", weights="pretrained")  # the reference, an ordinary nn.Module
fast = cf.compile(model)  # the same outputs, faster
fast.verify(images)  # how much the two differ
fast.save("folder")  # and later, or elsewhere: fast = cf.load("folder")
"""

from .calibration.calibrate import calibrate
from .checkpoints.create import create_model
from .checkpoints.weights import convert, load_weights, read_state_dict, save_weights
from .deploy.build import build
from .deploy.compile import CompiledConformer, compile
from .deploy.load import load
from .errors import (
    BackendError,
    BundleError,
    CheckpointError,
    DownloadError,
    EngineError,
    EngineMismatchError,
)
from .evaluation.evaluate import evaluate
from .inference.quantization import Quantization, load_quantization, save_quantization
from .model.config import VARIANTS, ConformerConfig
from .model.reference import Conformer, ConformerFeatures, ConformerOutput
from .model.shapes import Shapes
from .version import __version__

__all__ = [
    "VARIANTS",
    "BackendError",
    "BundleError",
    "CheckpointError",
    "CompiledConformer",
    "Conformer",
    "ConformerConfig",
    "ConformerFeatures",
    "ConformerOutput",
    "DownloadError",
    "EngineError",
    "EngineMismatchError",
    "Quantization",
    "Shapes",
    "__version__",
    "build",
    "calibrate",
    "compile",
    "convert",
    "create_model",
    "evaluate",
    "load",
    "load_quantization",
    "load_weights",
    "read_state_dict",
    "save_quantization",
    "save_weights",
]
