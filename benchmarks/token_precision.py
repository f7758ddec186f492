"""What keeping the tokens in fp32 is worth, as JSON: token_precision.py OUT.json. Run by `make bench`.

The inference model runs by PyTorch on the CPU, with the products in 16 bits and the tokens in fp32 (as kernels and
engines have them) or in the products' type. Figures: ||x - exact|| / ||exact|| of the token branch's scores and of the
last tokens, with exact in float64, on 2 images of 224x224 and the weights of tests/data/recipe.py; and the largest
magnitude among the last tokens.
"""

from __future__ import annotations

import copy
import json
import runpy
import sys
from pathlib import Path

import torch

import conformer_fast as cf
from conformer_fast.inference.lower import lower
from conformer_fast.model.distance import relative_error
from conformer_fast.model.precision import DTYPES

RECIPE = Path(__file__).parent.parent / "tests" / "data" / "recipe.py"
PRECISIONS = ("fp16", "bf16")


def main(path: Path) -> None:
    tensor = runpy.run_path(str(RECIPE))["tensor"]
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    rows = []
    for variant in cf.VARIANTS:
        model = cf.create_model(variant)
        for name, value in model.state_dict().items():
            value.copy_(torch.from_numpy(tensor(name, tuple(value.shape))))
        outputs = ["trans_logits", f"{model.config.depth}.tokens"]
        with torch.no_grad():
            exact = lower(model, outputs).double()(images.double())
            for precision in PRECISIONS:
                mixed = lower(model, outputs, precision)
                forms = {"fp32": mixed, "products": copy.deepcopy(mixed).to(DTYPES[precision])}
                errors = {
                    tokens: [relative_error(*pair) for pair in zip(form(images), exact, strict=True)]
                    for tokens, form in forms.items()
                }
                row = {"variant": variant, "precision": precision, "largest": exact[1].abs().max().item()}
                rows.append(row | {"errors": errors})
                print(rows[-1], flush=True)
    path.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
