"""conformer_fast: the vision Conformer (arXiv 2105.03889), fast and verified against a reference.

import conformer_fast as cf

model = cf.create_model("small-p16", weights="mmpretrain")  # the reference, an ordinary nn.Module
fast = cf.compile(model)  # the same outputs, faster
fast.verify(images)  # how much the two differ
"""

__version__ = "0.1.0"

from .backends import BackendError
from .compiler import CompiledConformer, compile
from .config import VARIANTS, ConformerConfig
from .dialects import CheckpointError
from .download import DownloadError
from .model import Conformer, ConformerFeatures, ConformerOutput, create_model
from .weights import convert, load_weights, read_state_dict, save_weights

__all__ = [
    "VARIANTS",
    "BackendError",
    "CheckpointError",
    "CompiledConformer",
    "Conformer",
    "ConformerConfig",
    "ConformerFeatures",
    "ConformerOutput",
    "DownloadError",
    "compile",
    "convert",
    "create_model",
    "load_weights",
    "read_state_dict",
    "save_weights",
]
