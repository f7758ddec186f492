"""conformer_fast: the vision Conformer (arXiv 2105.03889), fast and verified against a reference.

import conformer_fast as cf

model = cf.create_model("small-p16", weights="mmpretrain")  # the reference, an ordinary nn.Module
fast = cf.compile(model)  # the same outputs, faster
fast.verify(images)  # how much the two differ
fast.save("folder")  # and later, or elsewhere: fast = cf.load("folder")
"""

__version__ = "0.1.0"

from .backends import BackendError
from .builder import build
from .bundle import load
from .calibration import calibrate
from .compiler import CompiledConformer, compile
from .config import VARIANTS, ConformerConfig
from .dialects import CheckpointError
from .download import DownloadError
from .engines.flavours import EngineError
from .evaluation import evaluate
from .manifest import BundleError, EngineMismatchError
from .model import Conformer, ConformerFeatures, ConformerOutput, create_model
from .profile import Profile
from .quantization import Quantization
from .quantization_file import load_quantization, save_quantization
from .weights import convert, load_weights, read_state_dict, save_weights

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
    "Profile",
    "Quantization",
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
