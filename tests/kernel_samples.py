"""Calls of the operations that multiply weights, on small and odd sizes: what several test files of kernels run."""

from kernel_checks import Sample, fine, shape

from conformer_fast.kernels.tiles import Tile


def patch_embed_sample(label: str, stem_map: tuple[int, int, int, int], C: int, S: int, tokens=fine) -> Sample:
    weight = shape(C, stem_map[-1], S, S)
    arguments = shape(*stem_map), tokens(1, 1, C), weight, shape(C), tokens(C), tokens(C), 1e-6
    return Sample(label, "patch_embed", arguments)


def coupled_sample(B: int, h: int, w: int, S: int, K: int, N: int, stride: int = 1) -> Sample:
    """A map of h x w tokens, to which their entries are added."""
    feature_map = shape(B, h * S * stride, w * S * stride, K)
    arguments = feature_map, shape(N, K), shape(N), stride, True, None, shape(B, h * w, N), S
    return Sample(f"B{B}-{h}x{w}-tokens{S}-K{K}-stride{stride}", "conv1x1", arguments)


LINEAR = [
    Sample("plain", "linear", (shape(3, 5, 24), shape(20, 24), shape(20))),
    Sample("one-row", "linear", (shape(1, 1, 24), shape(20, 24), shape(20))),
    Sample("matrix", "linear", (shape(70, 33), shape(17, 33), shape(17))),
    Sample("gelu", "linear", (shape(2, 49, 64), shape(130, 64), shape(130), True)),
    Sample("fine-rows", "linear", (fine(3, 50, 100), shape(40, 100), shape(40), True)),
    Sample("residual", "linear", (shape(3, 5, 24), shape(20, 24), shape(20), False, shape(3, 5, 20))),
    Sample("fine-residual", "linear", (shape(1, 197, 24), shape(20, 24), shape(20), False, fine(1, 197, 20))),
    Sample(
        "everything",
        "linear",
        (fine(3, 67, 40), shape(72, 40), shape(72), True, fine(3, 67, 72)),
    ),
    Sample("1x1-image", "conv1x1", (shape(1, 1, 1, 16), shape(20, 16), shape(20))),
    Sample("B3-5x7", "conv1x1", (shape(3, 5, 7, 96), shape(33, 96), shape(33))),
    Sample("linear", "conv1x1", (shape(3, 5, 7, 16), shape(64, 16), shape(64), 1, False)),
    Sample("strided", "conv1x1", (shape(3, 5, 7, 40), shape(33, 40), shape(33), 2, False)),
    Sample("residual", "conv1x1", (shape(3, 8, 8, 16), shape(64, 16), shape(64), 1, True, shape(3, 8, 8, 64))),
    Sample("strided-residual", "conv1x1", (shape(3, 5, 8, 6), shape(10, 6), shape(10), 2, True, shape(3, 3, 4, 10))),
    coupled_sample(3, 2, 3, 4, 24, 33),
    coupled_sample(1, 3, 1, 2, 40, 20),
    coupled_sample(3, 1, 1, 1, 16, 16),
    coupled_sample(1, 1, 2, 8, 6, 10),
    coupled_sample(2, 2, 1, 3, 6, 10, stride=2),
    Sample("N9", "fcu_up", (fine(3, 10, 48), shape(20, 48), shape(20))),
    Sample("N1", "fcu_up", (shape(1, 2, 24), shape(6, 24), shape(6))),
    patch_embed_sample("4x4", (2, 8, 12, 10), 24, 4),
    patch_embed_sample("8x8", (1, 8, 8, 16), 100, 8),
    patch_embed_sample("one-pixel", (3, 2, 3, 16), 24, 1, tokens=shape),
]


def _plain(B, H, W, K, N, stride, relu=True):
    label = f"B{B}-{H}x{W}-K{K}-N{N}-stride{stride}{'' if relu else '-linear'}"
    return Sample(label, "conv3x3", (shape(B, H, W, K), shape(N, K, 3, 3), shape(N), stride, relu))


def _pooled(B, h, w, S, K, N, stride):
    label = f"B{B}-{h}x{w}-pool{S}-K{K}-stride{stride}"
    arguments = (shape(B, h * S * stride, w * S * stride, K), shape(N, K, 3, 3), shape(N), stride, S)
    return Sample(label, "conv3x3_pool", arguments)


CONV3X3 = [
    _plain(1, 1, 1, 16, 16, 1),
    _plain(3, 5, 7, 6, 10, 1),
    _plain(3, 5, 7, 6, 10, 2),
    _plain(1, 4, 9, 33, 40, 2),
    _plain(1, 6, 6, 96, 70, 1),
    _pooled(3, 2, 3, 4, 24, 20, 1),
    _pooled(1, 1, 3, 8, 6, 10, 1),
    _pooled(3, 3, 5, 2, 40, 70, 1),
    _pooled(1, 3, 2, 4, 16, 16, 2),
]


PYRAMID = [  # which only detectors have
    Sample("B2-2x3", "lateral", (shape(2, 4, 6, 40), shape(20, 40), shape(20), shape(2, 2, 3, 20))),
    Sample("one", "lateral", (shape(1, 2, 2, 6), shape(10, 6), shape(10), shape(1, 1, 1, 10))),
    _plain(2, 5, 4, 24, 20, 1, relu=False),
]


def fcu_down_sample(
    label: str, B: int, grid: tuple[int, int], C: int, K: int, S: int, uncovered: int = 0, tokens=fine
) -> Sample:
    """uncovered: lines and columns of the map beyond those of the tokens."""
    H, W = (side * S + uncovered for side in grid)
    norm = tokens(C), tokens(C), 1e-6
    arguments = shape(B, H, W, K), tokens(B, 1 + grid[0] * grid[1], C), shape(C, K), shape(C), *norm, S, *norm
    return Sample(label, "fcu_down", arguments)


def linear_norm_sample(label: str, rows: tuple[int, ...], C: int, K: int, tokens=fine) -> Sample:
    arguments = shape(*rows, K), shape(C, K), shape(C), tokens(*rows, C), tokens(C), tokens(C), 1e-6
    return Sample(label, "linear_norm", arguments)


WHOLE_ROWS = [
    linear_norm_sample("C384", (1, 50), 384, 40),
    linear_norm_sample("C576", (3, 7), 576, 96),
    linear_norm_sample("one-row", (1, 1), 24, 6),
    linear_norm_sample("matrix", (70,), 100, 33),
    linear_norm_sample("coarse-tokens", (3, 19), 72, 40, tokens=shape),
    fcu_down_sample("C384", 1, (7, 7), 384, 16, 1),
    fcu_down_sample("C576", 3, (2, 3), 576, 96, 1),
    fcu_down_sample("one-token", 3, (1, 1), 24, 6, 1),
    fcu_down_sample("S2", 1, (2, 3), 100, 40, 2),
    fcu_down_sample("S3", 3, (3, 2), 384, 40, 3),
    fcu_down_sample("S4", 1, (7, 7), 100, 16, 4),
    fcu_down_sample("S8", 3, (1, 1), 24, 40, 8),
    fcu_down_sample("uncovered", 1, (2, 2), 24, 16, 2, uncovered=1),
    fcu_down_sample("coarse-tokens", 3, (2, 3), 384, 40, 2, tokens=shape),
]


STEM_SMALL = Tile(2, 16, 0, 4, 2)  # several strips, and programs of 7 pixels that cross images, on small sizes


def stem_sample(
    label: str, B: int, H: int, W: int, multiple: int, channels: int = 3, K: int = 64, images=shape
) -> Sample:
    return Sample(label, "stem", (images(B, channels, H, W), shape(K, channels, 7, 7), shape(K), multiple))


STEM = [
    stem_sample("1x1", 3, 1, 1, 1),
    stem_sample("1x1-padded", 1, 1, 1, 8),
    stem_sample("2x3", 3, 2, 3, 1),
    stem_sample("33x47", 1, 33, 47, 4),
    stem_sample("32x48", 1, 32, 48, 4),
    stem_sample("odd-maps", 3, 13, 18, 1),
    stem_sample("wide", 1, 3, 150, 2),
    stem_sample("tall", 2, 40, 1, 1),
    stem_sample("unpadded", 2, 28, 28, 1),
    stem_sample("gray", 3, 15, 20, 4, channels=1, K=24),
    stem_sample("four-channels", 1, 15, 20, 4, channels=4, K=6),
    stem_sample("fine-images", 3, 20, 15, 4, images=fine),
]
