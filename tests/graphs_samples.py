"""What the tests of the CUDA executor on a pretended GPU share: where that is, and a model with an error in it."""

import torch
from torch import Tensor

from conformer_fast.inference.base import InferenceNetwork
from conformer_fast.inference.network import InferenceConformer

CPU = torch.device("cpu")


class Faulty(InferenceNetwork):
    """The model with an error in it, the `runs`-th time it runs: 1 to prepare, 2 to be recorded."""

    def __init__(self, model: InferenceConformer, runs: int) -> None:
        super().__init__()
        self.model, self.runs = model, runs

    second_dimension, output_names, last_products = 3, (), ()

    def forward(self, batch: Tensor) -> tuple[Tensor, ...]:
        self.runs -= 1
        hook = self.model.conv_trans_2.cnn_block.conv3.register_forward_pre_hook(self.fail)  # beside the transformer
        try:
            return self.model(batch)
        finally:
            hook.remove()

    def fail(self, *_) -> None:
        if self.runs == 0:
            raise RuntimeError("a kernel does not compile")
