"""A bundle as a model of NVIDIA Triton Inference Server (no relation to the language of our kernels).

The server wants folder/<model>/config.pbtxt and folder/<model>/1/model.plan. What clients send and get is the engine's:
"images", fp32 and normalized, and its outputs. Requests that wait are batched, up to the engine's largest batch.
"""

from __future__ import annotations

from collections.abc import Sequence

from conformer_fast.bundles.folder import StoredEngine
from conformer_fast.bundles.manifest import Manifest
from conformer_fast.errors import BundleError
from conformer_fast.model.config import EXPANSION, ConformerConfig
from conformer_fast.model.outputs import LOGITS, SUM
from conformer_fast.model.shapes import Range, Shapes

CONFIGURATION = "config.pbtxt"
QUEUE_MICROSECONDS = 500  # how long a request waits for others: about what an engine takes for one image


def model_files(stored: StoredEngine, plan: str, name: str, instances: int) -> dict[str, bytes]:
    """The files of a model that runs the bundle's engine, by their paths in the model's folder.

    plan: the engine's file in the bundle; name: what clients call the model; instances: batches run at once on each
    GPU, each in its own working memory

    Raises BundleError when the engine is not TensorRT's or takes no single images.
    """
    manifest, where = stored.manifest, stored.folder
    assert isinstance(manifest, Manifest)
    kind = manifest.runtime.get("flavor", manifest.backend)
    if kind != "tensorrt":
        raise BundleError(
            f"{where} holds an engine for {kind}, and the server's TensorRT backend reads those of TensorRT only: "
            f"build one with --flavor tensorrt on a machine with the GPU"
        )
    batches = _batches(manifest.shapes)
    if len(batches) > 1:
        raise BundleError(
            f"{where} takes other batches for other images ({sorted(batches)}), and the server knows only one "
            f"largest batch: build one whose shapes have the same"
        )
    smallest, largest = batches.pop()
    if smallest > 1:
        raise BundleError(
            f"{where} takes {smallest} images or more, and the server passes single ones on when no others wait: "
            f"build one with --batch 1,{smallest},{largest}"
        )
    files = {f"1/{plan}": stored.read(plan), CONFIGURATION: configuration(manifest, name, instances).encode()}
    if manifest.labels:
        files[manifest.labels] = stored.read(manifest.labels)
    return files


def _batches(shapes: Sequence[Shapes]) -> set[tuple[int, int]]:
    """The smallest and the largest batch of each size of images; one pair if they are all the same."""
    of_size: dict[tuple[Range, Range], list[Range]] = {}
    for taken in shapes:
        of_size.setdefault((taken.height, taken.width), []).append(taken.batch)
    return {(min(low for low, _, _ in batch), max(high for _, _, high in batch)) for batch in of_size.values()}


def configuration(manifest: Manifest, name: str, instances: int) -> str:
    """The text of config.pbtxt, a ModelConfig of the server. The batch is none of its dimensions."""
    shapes, config = manifest.shapes, manifest.config
    height = _dimension([limit for taken in shapes for limit in taken.height])
    width = _dimension([limit for taken in shapes for limit in taken.width])
    outputs = [_tensor(output, _sizes(output, config), manifest.labels) for output in manifest.outputs]
    tuned = sorted({taken.batch[1] for taken in shapes})
    separator = ",\n"
    indices = ", ".join(f'"{index}"' for index in range(len(shapes)))
    return f"""\
name: "{name}"
platform: "tensorrt_plan"
max_batch_size: {max(taken.batch[2] for taken in shapes)}
input [
{_tensor("images", [config.in_channels, height, width])}
]
output [
{separator.join(outputs)}
]
dynamic_batching {{
  preferred_batch_size: {tuned}
  max_queue_delay_microseconds: {QUEUE_MICROSECONDS}
}}
instance_group [
  {{ kind: KIND_GPU, count: {instances}, profile: [ {indices} ] }}
]
"""


def _tensor(name: str, sizes: list[int], labels: str | None = None) -> str:
    label = f', label_filename: "{labels}"' if labels and name in (*LOGITS, SUM) else ""
    return f'  {{ name: "{name}", data_type: TYPE_FP32, dims: {sizes}{label} }}'


def _dimension(limits: list[int]) -> int:
    """The one size there is, or -1, which is any."""
    return limits[0] if len(set(limits)) == 1 else -1


def _sizes(output: str, config: ConformerConfig) -> list[int]:
    """The dimensions behind the batch of one of the model's outputs; -1 is any."""
    if output in (*LOGITS, SUM):
        return [config.num_classes]
    block, _, kind = output.partition(".")
    channels = config.map_channels(int(block))
    return {
        "map": [channels, -1, -1],
        "pooled": [channels],
        "class_token": [config.embed_dim],
        "tokens": [-1, config.embed_dim],
        "fcu_down": [-1, config.embed_dim],
        "fcu_up": [-1, channels // EXPANSION],
    }[kind]
