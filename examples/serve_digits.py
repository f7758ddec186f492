"""The packaged digits model behind an address, with pictures that it was not trained on to try there: `make serve`."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import conformer_fast as cf
from conformer_fast.datasets.digits import digit_image, load_pixels, split_indices

PICTURES = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000)
    port = parser.parse_args().port
    model = cf.create_model("digits", weights="packaged")
    with tempfile.TemporaryDirectory(prefix="digits-") as folder:
        pixels, labels = load_pixels()
        _, held_out = split_indices(labels)
        for index in held_out[:PICTURES]:
            digit_image(pixels[index]).resize((256, 256)).save(Path(folder, f"{labels[index]}-{index}.png"))

        def listening(address: str) -> None:
            print(f"open {address} and try the digits in {folder}; Ctrl-C ends it", flush=True)

        cf.serve(cf.compile(model), port=port, listening=listening)


if __name__ == "__main__":
    main()
