"""The same model behind LitServe: serving_peer.py BUNDLE PORT MAX_BATCH. serving.py runs it.

It takes the same requests as ours, decodes by our code too, and batches as its documentation shows.
"""

from __future__ import annotations

import base64
import sys
from dataclasses import asdict
from io import BytesIO
from typing import Any

import litserve
import torch
from torch import Tensor

import conformer_fast as cf
from conformer_fast.deploy.predict import summed, top_classes
from conformer_fast.preprocessing.cpu import load_image, preprocess

DELAY = 0.005  # seconds; the default of ours


class Classify(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = cf.load(sys.argv[1])

    def decode_request(self, request) -> Tensor:  # without a type, which it would take for a query's
        (image,) = request["images"]
        return preprocess(load_image(BytesIO(base64.b64decode(image))), recipe=self.model.recipe)

    def batch(self, inputs: list[Tensor]) -> Tensor:
        return torch.stack(inputs)

    def predict(self, images: Tensor) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            return self.model.run(images)

    def unbatch(self, outputs: tuple[Tensor, ...]) -> list[Any]:
        return list(top_classes(summed(self.model, outputs), self.model.labels, 5))

    def encode_response(self, output: Any) -> dict[str, Any]:
        return {"top": [asdict(guess) for guess in output]}


if __name__ == "__main__":
    api = Classify(max_batch_size=int(sys.argv[3]), batch_timeout=DELAY, api_path="/v1/predict")
    server = litserve.LitServer(api, accelerator="cpu", timeout=120)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
