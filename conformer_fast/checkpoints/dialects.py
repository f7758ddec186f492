"""Whose checkpoint is it? Recognizes a state dict by its names and gives it the official names.

| dialect     | prefixes             | norms        | MLP                              | heads, trans_norm |
|-------------|----------------------|--------------|----------------------------------|-------------------|
| official    | none                 | norm1, norm2 | mlp.fc1, mlp.fc2                 | yes               |
| mmpretrain  | backbone., head.     | ln1, ln2     | ffn.layers.0.0, ffn.layers.1     | yes               |
| mmdetection | backbone.            | norm1, norm2 | mlp.fc1, mlp.fc2                 | no                |

A backbone alone, of any dialect, has no prefix and no heads.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from ..errors import CheckpointError, first_few, one_of, shown
from ..model.config import HEAD_DIM, PACKAGED, STEM_CHANNELS, VARIANTS, ConformerConfig

Dialect = Literal["official", "mmpretrain", "mmdetection"]

WRAPPERS = ("module.", "_orig_mod.", "model.", "net.")
"""What DistributedDataParallel, torch.compile and training programs (Lightning) put in front."""
BODY = ("trans_patch_conv.", "conv_trans_")  # how only a Conformer's names begin
HEADS = ("trans_cls_head.", "conv_cls_head.")
DETECTOR = ("neck.", "rpn_head.", "roi_head.")  # a detector's parts beside its backbone
COUNTER = "num_batches_tracked"  # of every batch norm; inference does not read it
BESIDE = ("n_averaged", "total_ops", "total_params")  # what AveragedModel and thop add to a state dict
RENAMED = (  # official name, mmpretrain's
    (".norm1.", ".ln1."),
    (".norm2.", ".ln2."),
    (".mlp.fc1.", ".ffn.layers.0.0."),
    (".mlp.fc2.", ".ffn.layers.1."),
)


@dataclass(frozen=True)
class Recognized:
    """A Conformer's state dict under the official names.

    dialect: whose names it had
    state:   official name -> tensor, counters (num_batches_tracked) included
    ignored: keys that say nothing about the model: counters, what tools add, a detector's parts outside its backbone,
             and heads without classes
    """

    dialect: Dialect
    state: dict[str, Tensor]
    ignored: int

    @property
    def num_classes(self) -> int | None:
        """Rows of the heads, None when there are none."""
        for head in HEADS:
            if f"{head}weight" in self.state:
                return self._shape(f"{head}weight", 2)[0]
        return None

    def config(self, num_heads: int | None = None) -> ConformerConfig:
        """The sizes, read from the shapes.

        num_heads cannot be read from a checkpoint: by default it is that of the variant with these sizes; for sizes of
        no variant, 64 channels a head are assumed, with a warning.
        Raises CheckpointError when a tensor is missing or the sizes are not a Conformer's.
        """
        embed_dim = self._shape("cls_token", 3)[2]
        patch_conv = self._shape("trans_patch_conv.weight", 4)
        sizes = {
            "patch_size": patch_conv[3] * 4,  # the stem map has stride 4
            "channel_ratio": _ratio("conv_1.conv3.weight", self._shape("conv_1.conv3.weight", 4)[0], STEM_CHANNELS),
            "embed_dim": embed_dim,
            "num_heads": num_heads or 1,
            "depth": self._depth(),
            "mlp_ratio": _ratio("trans_1.mlp.fc1.weight", self._shape("trans_1.mlp.fc1.weight", 2)[0], embed_dim),
            "in_channels": self._shape("conv1.weight", 4)[1],
        }
        if self.num_classes is not None:
            sizes["num_classes"] = self.num_classes
        try:
            config = ConformerConfig(**sizes)
        except ValueError as error:
            raise CheckpointError(f"the checkpoint's sizes are not a Conformer's: {error}") from error
        return config if num_heads else replace(config, num_heads=_usual_heads(config))

    def _shape(self, name: str, dimensions: int) -> tuple[int, ...]:
        if name not in self.state:
            raise CheckpointError(f"the {self.dialect} checkpoint has no {name}, so its sizes cannot be read")
        shape = tuple(getattr(self.state[name], "shape", ()))
        if len(shape) != dimensions or 0 in shape:
            raise CheckpointError(
                f"{name} has shape {shown(shape)}; a Conformer's has {dimensions} dimensions, none empty"
            )
        return shape

    def _depth(self) -> int:
        matches = (re.match(r"conv_trans_(\d{1,4})\.", name) for name in self.state)
        blocks = {int(match[1]) for match in matches if match}  # 2 ... depth
        depth = max(blocks, default=0)
        if len(blocks) != depth - 1:
            raise CheckpointError(f"the checkpoint has {len(blocks)} conv_trans blocks, the last one called {depth}")
        return depth


def _usual_heads(config: ConformerConfig) -> int:
    """The number of heads of the variant with these sizes; else 64 channels a head, with a warning."""
    for known in (VARIANTS | PACKAGED).values():
        if replace(known, num_classes=config.num_classes, num_heads=config.num_heads) == config:
            return known.num_heads
    advice = (
        "build the model with create_model(ConformerConfig(...), weights=...), a detector with "
        "create_detector(DetectorConfig(...), weights=...), and give that instead"
    )
    if config.embed_dim % HEAD_DIM:
        raise CheckpointError(
            f"the tokens have {config.embed_dim} channels, not a multiple of {HEAD_DIM}, so the number of attention "
            f"heads cannot be guessed; {advice}"
        )
    heads = config.embed_dim // HEAD_DIM
    warnings.warn(
        f"these weights have the sizes of no published variant and do not tell the number of attention heads; "
        f"{heads} of {HEAD_DIM} channels are assumed. If that is wrong, {advice}",
        stacklevel=4,
    )
    return heads


def recognize(state: Mapping[str, Tensor]) -> Recognized:
    """Tells the dialect of a state dict from its names and renames it to the official ones.

    Raises CheckpointError when the names are not a Conformer's, or two of them mean the same.
    """
    plain = {name: _unwrapped(name) for name in state}
    holder = _holder([name for name in plain.values() if not _is_beside(name)])
    plain = {name: inner.removeprefix(holder) for name, inner in plain.items()}
    prefixed = any(name.startswith("backbone.") for name in plain.values())
    official: dict[str, Tensor] = {}
    ignored = 0
    for name, tensor in state.items():
        renamed = _official_name(plain[name], prefixed)
        if renamed is None or _says_nothing(renamed, tensor):
            ignored += 1
        elif renamed in official:
            raise CheckpointError(f"two keys of the state dict mean {shown(renamed)}; one of them is {shown(name)}")
        else:
            official[renamed] = tensor
            ignored += renamed.endswith(COUNTER)
    if not any(name.startswith(BODY) for name in official):
        raise CheckpointError(
            f"not a Conformer's weights: no key begins with {' or '.join(BODY)}; "
            f"the first keys are {first_few(state) or 'none, it is empty'}"
        )
    theirs = tuple(mmpretrain for _, mmpretrain in RENAMED)
    if any(part in name for name in plain.values() for part in theirs):
        dialect: Dialect = "mmpretrain"
    else:
        dialect = "mmdetection" if prefixed else "official"
    return Recognized(dialect, official, ignored)


def detector_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A detector's state dict under the names of the official detection fork: the backbone's tensors under the official
    names behind "backbone.", and its other parts'. Nothing of a classifier's but its backbone.

    Raises CheckpointError as `recognize` does.
    """
    found = recognize(state)
    plain = {name: _unwrapped(name) for name in state}
    holder = _holder([name for name in plain.values() if not _is_beside(name)])
    others = {inner.removeprefix(holder): state[name] for name, inner in plain.items()}
    named = {f"backbone.{name}": tensor for name, tensor in found.state.items()}
    return named | {name: tensor for name, tensor in others.items() if name.startswith(DETECTOR)}


def to_dialect(state: Mapping[str, Tensor], dialect: Dialect) -> dict[str, Tensor]:
    """Official names -> the names of "official" or "mmpretrain". Raises ArgumentError for another dialect."""
    one_of("dialect to write", dialect, ("official", "mmpretrain"))
    if dialect == "official":
        return dict(state)
    return {_mmpretrain_name(name): tensor for name, tensor in state.items()}


def _unwrapped(name: str) -> str:
    if not isinstance(name, str):
        raise CheckpointError(f"not a state dict: the key {shown(repr(name))} is no name")
    while name.startswith(WRAPPERS):
        name = name.split(".", 1)[1]
    return name


def _holder(names: Collection[str]) -> str:
    """What stands before all names, such as "conformer." where a module holds the model under that name."""
    prefixes = {name.partition(BODY[0])[0].removesuffix("backbone.") for name in names if BODY[0] in name}
    prefix = prefixes.pop() if len(prefixes) == 1 else ""
    return prefix if all(name.startswith(prefix) for name in names) else ""


def _is_beside(name: str) -> bool:
    return name.rpartition(".")[2] in BESIDE


def _says_nothing(name: str, tensor: Tensor) -> bool:
    """Whether a tool added it, or it is a head of no classes, which the official model with num_classes=0 has."""
    return _is_beside(name) or (name.startswith(HEADS) and tuple(tensor.shape)[:1] == (0,))


def _official_name(name: str, prefixed: bool) -> str | None:
    """None: outside the backbone and the heads."""
    if prefixed:
        if name.startswith("backbone."):
            name = name.removeprefix("backbone.")
        elif name.startswith("head.") and name.removeprefix("head.").startswith(HEADS):
            return name.removeprefix("head.")
        else:
            return None
    for official, mmpretrain in RENAMED:
        name = name.replace(mmpretrain, official)
    return name


def _mmpretrain_name(name: str) -> str:
    if name.startswith(HEADS):
        return f"head.{name}"
    for official, mmpretrain in RENAMED:
        name = name.replace(official, mmpretrain)
    return f"backbone.{name}"


def _ratio(name: str, channels: int, base: int) -> int:
    if channels % base:
        raise CheckpointError(f"{name} has {channels} output channels, not a multiple of {base}")
    return channels // base
