"""The sizes of a Conformer and the four published variants (arXiv 2105.03889, table 1)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from ..errors import ArgumentError, ArgumentTypeError, shown

STEM_CHANNELS = 64
HEAD_DIM = 64  # of every published variant; what a checkpoint alone implies for the number of heads
LARGEST_SIDE = 8750  # pixels of a square image; for larger ones the resized picture would be over preprocessing's limit
EXPANSION = 4  # a bottleneck's outer channels / its inner channels
MOST = {  # of each size: far beyond any model, far below what PyTorch cannot count
    "patch_size": 1024,
    "channel_ratio": 256,
    "embed_dim": 65536,
    "num_heads": 65536,
    "depth": 300,
    "mlp_ratio": 256,
    "num_classes": 16_777_216,
    "in_channels": 65536,
}


@dataclass(frozen=True)
class ConformerConfig:
    """Sizes of one Conformer. Raises ArgumentError when they do not fit together or are beyond any model's.

    patch_size:    pixels per token side; a multiple of 16, because the token grid is shared by maps of stride 4, 8, 16
    channel_ratio: CNN channels of stage 1, 2, 3 are 64, 128, 256 times this
    embed_dim:     C, channels of a token; a multiple of num_heads
    depth:         blocks in all; a multiple of 3, a third in each stage
    mlp_ratio:     hidden channels of the MLP / embed_dim
    """

    patch_size: int = 16
    channel_ratio: int = 4
    embed_dim: int = 384
    num_heads: int = 6
    depth: int = 12
    mlp_ratio: int = 4
    num_classes: int = 1000
    in_channels: int = 3

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ArgumentError(f"ConformerConfig: {name} must be a positive integer, got {shown(repr(value))}")
            if value > MOST[name]:
                raise ArgumentError(f"ConformerConfig: {name} must be at most {MOST[name]}, got {value}")
        if self.depth % 3:
            raise ArgumentError(f"ConformerConfig: depth must be a multiple of 3 (three stages), got {self.depth}")
        if self.patch_size % 16:
            raise ArgumentError(f"ConformerConfig: patch_size must be a multiple of 16, got {self.patch_size}")
        if self.embed_dim % self.num_heads:
            raise ArgumentError(
                f"ConformerConfig: embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}"
            )

    @property
    def stem_stride(self) -> int:
        """Stem-map pixels per token side; the stem map's height and width must be multiples of it."""
        return self.patch_size // 4

    @property
    def mlp_dim(self) -> int:
        return self.embed_dim * self.mlp_ratio

    @property
    def feature_blocks(self) -> tuple[int, ...]:
        """Blocks whose maps are a backbone's features: each stage's end, the last but one. Depth 12: 4, 8, 11, 12."""
        third = self.depth // 3
        return tuple(sorted({third, 2 * third, self.depth - 1, self.depth}))

    def stage(self, block: int) -> int:
        """0, 1 or 2: the stage of block 1 ... depth."""
        return (block - 1) // (self.depth // 3)

    def map_channels(self, block: int) -> int:
        """K, channels of the CNN map that block 1 ... depth returns."""
        return STEM_CHANNELS * self.channel_ratio * 2 ** self.stage(block)

    def token_stride(self, block: int) -> int:
        """Pixels of the block's inner CNN map per token side: what FCU-down pools and FCU-up repeats."""
        return self.stem_stride // 2 ** self.stage(block)


VARIANTS = {
    "tiny-p16": ConformerConfig(patch_size=16, channel_ratio=1, embed_dim=384, num_heads=6),
    "small-p32": ConformerConfig(patch_size=32, channel_ratio=4, embed_dim=384, num_heads=6),
    "small-p16": ConformerConfig(patch_size=16, channel_ratio=4, embed_dim=384, num_heads=6),
    "base-p16": ConformerConfig(patch_size=16, channel_ratio=6, embed_dim=576, num_heads=9),
}

DIGITS_SIDE = 64  # pixels of the images that the digits model is trained on
PACKAGED = {
    # Trained by examples/train_digits.py; its weights ship with the package.
    "digits": ConformerConfig(channel_ratio=1, embed_dim=64, num_heads=4, depth=3, mlp_ratio=2, num_classes=10),
}

OFFICIAL_NAMES = {f"conformer_{name.replace('-p', '_patch')}": name for name in VARIANTS}  # in small letters


def our_name(name: str) -> str:
    """Our name of a variant that is called as the official repository calls it; any other name as it is."""
    return OFFICIAL_NAMES.get(name.lower(), name)


def name_of(config: ConformerConfig) -> str | None:
    """The name of a model of these sizes, whatever its number of classes; None if they have none."""
    for name, known in (VARIANTS | PACKAGED).items():
        if replace(known, num_classes=config.num_classes) == config:
            return name
    return None


def get_config(name: str | ConformerConfig, num_classes: int | None = None) -> ConformerConfig:
    """The configuration called `name`, here or in the official repository, or `name` itself, with another class count
    if given.

    Raises ArgumentError, with the names there are, when there is no such variant.
    """
    known = VARIANTS | PACKAGED
    if isinstance(name, ConformerConfig):
        config = name
    elif isinstance(name, str) and our_name(name) in known:
        config = known[our_name(name)]
    else:
        kind = ArgumentError if isinstance(name, str) else ArgumentTypeError
        raise kind(f"unknown Conformer {shown(repr(name))}; choose one of {', '.join(known)} or pass a ConformerConfig")
    return config if num_classes is None else replace(config, num_classes=num_classes)
