"""conformer_fast: the vision Conformer (arXiv 2105.03889), fast and verified against a reference.

import conformer_fast as cf

model = cf.create_model("small-p16", weights="pretrained")  # the reference, an ordinary nn.Module
fast = cf.compile(model)  # the same outputs, faster
fast.verify(images)  # how much the two differ
fast.save("folder")  # and later, or elsewhere: fast = cf.load("folder")

Every name is imported when it is first used: the import of the package alone waits for neither PyTorch nor NumPy.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bulk.batch import batch as batch
    from .bulk.report import BatchResult as BatchResult
    from .bundles.manifest import Manifest as Manifest
    from .calibration.calibrate import calibrate as calibrate
    from .checkpoints.create import create_model as create_model
    from .checkpoints.create_detector import create_detector as create_detector
    from .checkpoints.reading import read_state_dict as read_state_dict
    from .checkpoints.weights import LoadReport as LoadReport
    from .checkpoints.weights import load_weights as load_weights
    from .checkpoints.writing import convert as convert
    from .checkpoints.writing import save_weights as save_weights
    from .datasets.batches import Batches as Batches
    from .datasets.batches import DatasetBatches as DatasetBatches
    from .datasets.batches import Pictures as Pictures
    from .datasets.batches import images_in as images_in
    from .datasets.dataset import Dataset as Dataset
    from .datasets.dataset import open_dataset as open_dataset
    from .deploy.benchmark import Benchmark as Benchmark
    from .deploy.benchmark import benchmark as benchmark
    from .deploy.build import build as build
    from .deploy.compile import compile as compile
    from .deploy.damaged import Damaged as Damaged
    from .deploy.detect import DetectedPicture as DetectedPicture
    from .deploy.explain import Explanation as Explanation
    from .deploy.explain import explain as explain
    from .deploy.export import export as export
    from .deploy.export_server import export_server as export_server
    from .deploy.fast_conformer import FastConformer as FastConformer
    from .deploy.fast_detector import FastDetector as FastDetector
    from .deploy.info import Info as Info
    from .deploy.info import info as info
    from .deploy.load import load as load
    from .deploy.predict import Guess as Guess
    from .deploy.predict import Prediction as Prediction
    from .deploy.predict import Predictions as Predictions
    from .deploy.tune import Tuning as Tuning
    from .deploy.tune import tune as tune
    from .engines.base import Settings as Settings
    from .engines.cache import CachedEngine as CachedEngine
    from .engines.cache import cached_engines as cached_engines
    from .engines.cache import clear_cache as clear_cache
    from .engines.cuda import GPUMemoryError as GPUMemoryError
    from .engines.native.backend import Native as Native
    from .engines.openvino.backend import OpenVINO as OpenVINO
    from .engines.reference import Reference as Reference
    from .engines.tensorrt.backend import TensorRT as TensorRT
    from .engines.triton.backend import Triton as Triton
    from .engines.triton.tuning import Tuned as Tuned
    from .errors import ArgumentError as ArgumentError
    from .errors import ArgumentTypeError as ArgumentTypeError
    from .errors import BackendError as BackendError
    from .errors import BundleError as BundleError
    from .errors import CheckpointError as CheckpointError
    from .errors import ConformerFastError as ConformerFastError
    from .errors import DatasetError as DatasetError
    from .errors import DownloadError as DownloadError
    from .errors import EngineError as EngineError
    from .errors import EngineMismatchError as EngineMismatchError
    from .errors import ImageError as ImageError
    from .evaluation.coco import evaluate_detector as evaluate_detector
    from .evaluation.detector_report import DetectorEvaluation as DetectorEvaluation
    from .evaluation.evaluate import evaluate as evaluate
    from .evaluation.report import Evaluation as Evaluation
    from .inference.quantization import Quantization as Quantization
    from .model.config import VARIANTS as VARIANTS
    from .model.config import ConformerConfig as ConformerConfig
    from .model.detector.config import DetectorConfig as DetectorConfig
    from .model.detector.detect import Detections as Detections
    from .model.detector.detect import ImageSize as ImageSize
    from .model.detector.reference import Detector as Detector
    from .model.recipe import Recipe as Recipe
    from .model.reference import Conformer as Conformer
    from .model.reference import ConformerFeatures as ConformerFeatures
    from .model.reference import ConformerOutput as ConformerOutput
    from .model.shapes import Shapes as Shapes
    from .preprocessing.cpu import load_batch as load_batch
    from .preprocessing.cpu import preprocess as preprocess
    from .preprocessing.detection import fit_pictures as fit_pictures
    from .serving.on_ray import serve_app as serve_app
    from .serving.serve import serve as serve
    from .storage.hashed import DamagedError as DamagedError
    from .storage.hashed import UnsignedError as UnsignedError
    from .verification.diff import Diff as Diff
    from .verification.diff import diff as diff
    from .verification.verify import Report as Report
    from .version import __version__ as __version__

HOMES = {  # where each name is defined
    "ArgumentError": "errors:ArgumentError",
    "ArgumentTypeError": "errors:ArgumentTypeError",
    "BackendError": "errors:BackendError",
    "BatchResult": "bulk.report:BatchResult",
    "Batches": "datasets.batches:Batches",
    "Benchmark": "deploy.benchmark:Benchmark",
    "BundleError": "errors:BundleError",
    "CachedEngine": "engines.cache:CachedEngine",
    "CheckpointError": "errors:CheckpointError",
    "Conformer": "model.reference:Conformer",
    "ConformerConfig": "model.config:ConformerConfig",
    "ConformerFastError": "errors:ConformerFastError",
    "ConformerFeatures": "model.reference:ConformerFeatures",
    "ConformerOutput": "model.reference:ConformerOutput",
    "Damaged": "deploy.damaged:Damaged",
    "DamagedError": "storage.hashed:DamagedError",
    "Dataset": "datasets.dataset:Dataset",
    "DatasetBatches": "datasets.batches:DatasetBatches",
    "DatasetError": "errors:DatasetError",
    "DetectedPicture": "deploy.detect:DetectedPicture",
    "Detections": "model.detector.detect:Detections",
    "Detector": "model.detector.reference:Detector",
    "DetectorConfig": "model.detector.config:DetectorConfig",
    "DetectorEvaluation": "evaluation.detector_report:DetectorEvaluation",
    "Diff": "verification.diff:Diff",
    "DownloadError": "errors:DownloadError",
    "EngineError": "errors:EngineError",
    "EngineMismatchError": "errors:EngineMismatchError",
    "Evaluation": "evaluation.report:Evaluation",
    "Explanation": "deploy.explain:Explanation",
    "FastConformer": "deploy.fast_conformer:FastConformer",
    "FastDetector": "deploy.fast_detector:FastDetector",
    "GPUMemoryError": "engines.cuda:GPUMemoryError",
    "Guess": "deploy.predict:Guess",
    "ImageError": "errors:ImageError",
    "ImageSize": "model.detector.detect:ImageSize",
    "Info": "deploy.info:Info",
    "LoadReport": "checkpoints.weights:LoadReport",
    "Manifest": "bundles.manifest:Manifest",
    "Native": "engines.native.backend:Native",
    "OpenVINO": "engines.openvino.backend:OpenVINO",
    "Pictures": "datasets.batches:Pictures",
    "Prediction": "deploy.predict:Prediction",
    "Predictions": "deploy.predict:Predictions",
    "Quantization": "inference.quantization:Quantization",
    "Recipe": "model.recipe:Recipe",
    "Reference": "engines.reference:Reference",
    "Report": "verification.verify:Report",
    "Settings": "engines.base:Settings",
    "Shapes": "model.shapes:Shapes",
    "TensorRT": "engines.tensorrt.backend:TensorRT",
    "Triton": "engines.triton.backend:Triton",
    "Tuned": "engines.triton.tuning:Tuned",
    "Tuning": "deploy.tune:Tuning",
    "UnsignedError": "storage.hashed:UnsignedError",
    "VARIANTS": "model.config:VARIANTS",
    "__version__": "version:__version__",
    "batch": "bulk.batch:batch",
    "benchmark": "deploy.benchmark:benchmark",
    "build": "deploy.build:build",
    "cached_engines": "engines.cache:cached_engines",
    "calibrate": "calibration.calibrate:calibrate",
    "clear_cache": "engines.cache:clear_cache",
    "compile": "deploy.compile:compile",
    "convert": "checkpoints.writing:convert",
    "create_detector": "checkpoints.create_detector:create_detector",
    "create_model": "checkpoints.create:create_model",
    "diff": "verification.diff:diff",
    "evaluate": "evaluation.evaluate:evaluate",
    "evaluate_detector": "evaluation.coco:evaluate_detector",
    "explain": "deploy.explain:explain",
    "export": "deploy.export:export",
    "export_server": "deploy.export_server:export_server",
    "fit_pictures": "preprocessing.detection:fit_pictures",
    "images_in": "datasets.batches:images_in",
    "info": "deploy.info:info",
    "load": "deploy.load:load",
    "load_batch": "preprocessing.cpu:load_batch",
    "load_weights": "checkpoints.weights:load_weights",
    "open_dataset": "datasets.dataset:open_dataset",
    "preprocess": "preprocessing.cpu:preprocess",
    "read_state_dict": "checkpoints.reading:read_state_dict",
    "save_weights": "checkpoints.writing:save_weights",
    "serve": "serving.serve:serve",
    "serve_app": "serving.on_ray:serve_app",
    "tune": "deploy.tune:tune",
}

__all__ = list(HOMES)

if not find_spec(f"{__name__}.engines"):  # it lies at the top of the tree, and setup.py maps it into the package
    raise ImportError(
        "Python has found the folder conformer_fast of a checkout, which is not the whole package, before an installed "
        "one; start Python in another folder, or install the checkout by pip install -e ."
    )


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = HOMES[name].partition(":")
    value = getattr(import_module(f"{__name__}.{module}"), attribute)
    globals()[name] = value  # found at once from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *HOMES})
