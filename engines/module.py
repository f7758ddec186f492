"""An engine as a module: images in, checked and as the engine reads them, and results out."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from conformer_fast.checkpoints.adopt import Model, adopt
from conformer_fast.errors import ArgumentError, ArgumentTypeError, ConformerFastError
from conformer_fast.model.config import ConformerConfig
from conformer_fast.model.digest import weights_sha256
from conformer_fast.model.forked import before_computing
from conformer_fast.model.outputs import rebuild
from conformer_fast.model.recipe import USUAL, Recipe, input_side
from conformer_fast.model.reference import Conformer
from conformer_fast.model.shapes import Pad, Shapes, check_image_size, side_within

from .base import Engine, Settings

LARGEST = 1e15  # of an image's magnitudes; from 1e18 on squares in norms and sums in products leave fp32
INSTEAD = "save it with .save(folder), or save the model it was made from"


class EngineModule(nn.Module):
    """images (B, in_channels, H, W) on `device` -> what the original model's own forward returns, in fp32.

    Images are floating point and normalized, or uint8: the pixels of RGB pictures, which are then normalized as
    conformer_fast.preprocess does it for this `recipe`. Magnitudes up to LARGEST are computed rightly in fp32 and bf16,
    up to 65504 in fp16, which holds no more. On the CPU, larger ones and NaN are refused. On a GPU they are not
    searched for: the host would have to wait for it.

    Safe to call from several threads and, on the CPU, in a forked process. `settings` and `reason` tell how it runs,
    `config` and `pad` what the model is, `recipe` what it was trained for, `outputs` the names of the tensors it
    returns, in order (see InferenceConformer). It has no parameters and never trains: what of nn.Module would change
    that raises ConformerFastError, and so does what would record its results as constants.
    """

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        reason: str,
        config: ConformerConfig,
        pad: Pad,
        outputs: tuple[str, ...],
        structure: Any,
        recipe: Recipe = USUAL,
    ) -> None:
        super().__init__()
        self._engine, self._structure = engine, structure
        self.settings, self.reason = settings, reason
        self.config, self.pad, self.outputs, self.recipe = config, pad, outputs, recipe
        self._process = os.getpid()
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where its images must be, and its results are."""
        return torch.device(self.settings.device)

    @property
    def shapes(self) -> tuple[Shapes, ...]:
        """Of images that it takes; none: any."""
        return self.settings.backend.shapes

    @property
    def side(self) -> int:
        """Pixels of the side of the images it is for: what its engine is tuned for, or the model was trained on."""
        return self.input_side()

    def input_side(self, asked: int | None = None) -> int:
        """The same, unless another is `asked` for. Warns as model.recipe.input_side does."""
        if asked is None and self.shapes:
            asked = side_within(self.shapes, self.recipe.size)
        return input_side(self.recipe, self.config, asked)

    def at_once(self, images: int) -> int:
        """How many of so many images it takes together."""
        return min([images, *(shapes.batch[2] for shapes in self.shapes[:1])])

    @property
    def identity(self) -> dict[str, Any]:
        """What decides its values beside `settings`, as JSON values; "weights" is the hash of the reference's."""
        raise NotImplementedError

    def reference_of(self, model: Model) -> Conformer:
        """The reference of the model, anything that `compile` takes, that this was made from.

        Raises ArgumentError if it is another.
        """
        reference = adopt(model).reference
        if reference.config != self.config:
            raise ArgumentError(
                f"the reference is another model: this was made from a {self.config}, the reference is a "
                f"{reference.config}; give the model that it was made from"
            )
        mine, others = self.identity["weights"], weights_sha256(reference)
        if mine != others:
            raise ArgumentError(
                f"the reference has other weights: this was made from those with the sha256 {mine[:12]}, the reference "
                f"has {others[:12]}; give the model that it was made from"
            )
        return reference

    def forward(self, images: Tensor) -> Any:
        run: Callable[[Tensor], tuple[Tensor, ...]] = self.run
        if torch.compiler.is_compiling():  # as a decorator, `disable` would import the compiler into every program
            run = torch.compiler.disable(run)
        return rebuild(self._structure, run(images))

    def run(self, images: Tensor) -> tuple[Tensor, ...]:
        """The tensors called `outputs`, outside the structure that `forward` puts them in."""
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            raise ConformerFastError(f"an engine is not made of PyTorch's operators, so it cannot be traced; {INSTEAD}")
        if self.device.type == "cpu":
            before_computing()
        elif self._process != os.getpid():
            raise ConformerFastError(
                f"process {os.getpid()} was forked from {self._process}, where the model was made, and a GPU cannot be "
                f"used on after a fork; start processes by 'spawn' and make the model there"
            )
        return self._engine(self.as_input(images))

    def as_input(self, images: Tensor) -> Tensor:
        """The images as an engine reads them, floating point. Raises what `check_images` raises."""
        return as_input(images, self.config, self.pad, self.device, self.recipe)

    def extra_repr(self) -> str:
        return self.reason

    def train(self, mode: bool = True) -> Self:
        if mode:
            raise ConformerFastError("a compiled model does not train; train the model it was made from, then compile")
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What .to(), .half(), .cuda() and their like call, also on a module that this is a part of."""
        here = torch.empty(0, dtype=torch.float32, device=self.device)
        try:
            there = fn(here)
        except (RuntimeError, AssertionError) as error:  # PyTorch's for a device that it does not have
            raise ConformerFastError(
                f"a compiled model stays on {self.device}; compile the model it was made from elsewhere ({error})"
            ) from error
        if there.dtype != here.dtype:
            raise ConformerFastError(
                f"a compiled model stays in {self.settings.precision}, {there.dtype} would change nothing; compile the "
                f"model it was made from with another precision. Images may be of any floating point type"
            )
        if there.device != here.device:
            raise ConformerFastError(
                f"a compiled model stays on {self.device}; move the model it was made from to {there.device} and "
                f"compile it, or give compile(device={str(there.device)!r})"
            )
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        raise ConformerFastError(
            "a compiled model has no weights to give; take the model it was made from. What is compiled is kept by "
            ".save(folder)"
        )

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        """What a module that this is a part of loads by; it would leave out what it finds no place for."""
        if any(name.startswith(prefix) for name in state_dict):
            self.load_state_dict()

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        raise ConformerFastError("a compiled model takes no weights; load them into the model, then compile that")

    def _replicate_for_data_parallel(self) -> Any:
        raise ConformerFastError("DataParallel copies weights, a compiled model has none; compile one for each GPU")


def as_input(images: Tensor, config: ConformerConfig, pad: Pad, device: torch.device, recipe: Recipe) -> Tensor:
    """The images as an engine on `device` reads them, floating point. Raises what `check_images` raises."""
    check_images(images, config, pad, device)
    return images if images.is_floating_point() else _normalized(images, recipe)


def check_images(images: Tensor, config: ConformerConfig, pad: Pad, device: torch.device) -> None:
    """Raises ArgumentError or ArgumentTypeError, with the values, unless an engine on `device` can run `images`."""
    if not isinstance(images, Tensor):
        raise ArgumentTypeError(f"images must be a torch tensor, got {type(images).__name__}")
    if not images.is_floating_point() and images.dtype != torch.uint8:
        raise ArgumentTypeError(
            f"images must be floating point and normalized, or uint8, got {images.dtype}; see conformer_fast.preprocess"
        )
    if images.layout != torch.strided or images.is_nested:
        kind = "nested" if images.is_nested else images.layout
        raise ArgumentTypeError(f"images must be one dense tensor, got a {kind} one")
    check_image_size(images, config, pad)
    if not len(images):
        raise ArgumentError(f"the batch is empty: images have shape {tuple(images.shape)}")
    if images.dtype == torch.uint8 and config.in_channels != 3:
        raise ArgumentTypeError(
            f"uint8 images are pixels of RGB pictures, this model reads {config.in_channels} channel(s); pass "
            f"floating point, normalized as it was trained"
        )
    if images.device.type != device.type or device.index not in (None, images.device.index):
        place, fix = ("the CPU", "images.cpu()") if device.type == "cpu" else (device, f"images.to('{device}')")
        raise ArgumentError(f"this model is compiled for {place}, the images are on {images.device}; pass {fix}")
    if images.requires_grad and torch.is_grad_enabled():
        raise ArgumentError("compiled models do not train: the images require a gradient; pass images.detach()")
    if device.type == "cpu" and images.is_floating_point():
        _check_values(images)


def _check_values(images: Tensor) -> None:
    """Two passes by NumPy: PyTorch's threads would still be spinning while the engine starts, and slow it down."""
    values = images.detach().float().resolve_neg().numpy()  # what an engine reads: a large float64 is infinite here
    if values.min() >= -LARGEST and values.max() <= LARGEST:  # neither holds of NaN
        return
    bad, total = int((~np.isfinite(values)).sum()), images.numel()
    if bad:
        raise ArgumentError(f"{bad} of the images' {total} values are NaN or infinite in fp32")
    magnitudes = np.abs(values)
    raise ArgumentError(
        f"{int((magnitudes > LARGEST).sum())} of the images' {total} values are beyond {LARGEST:g}, up to "
        f"{magnitudes.max():.3g}, where fp32 and bf16 no longer compute the model rightly; pass normalized images, see "
        f"conformer_fast.preprocess"
    )


def _normalized(pixels: Tensor, recipe: Recipe) -> Tensor:
    """uint8 pixels -> float32, to the last bit as `preprocess` returns them."""
    white, mean, std = _constants(pixels.device, *recipe.normalization)
    return (pixels.float() / white - mean) / std


@cache
def _constants(
    device: torch.device, means: tuple[float, ...], stds: tuple[float, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Of `preprocess`, on the device: a GPU multiplies by the inverse of a plain number instead."""
    with torch.inference_mode(False):
        white, mean, std = (torch.tensor(value, dtype=torch.float32, device=device) for value in (255, means, stds))
    return white, mean.view(3, 1, 1), std.view(3, 1, 1)
