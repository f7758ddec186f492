"""All pictures, and where README.md and docs/ show them: python -m docs.drawing, or `make pictures`."""

from __future__ import annotations

from .album import PICTURES
from .embed import DOCUMENTS, embedded
from .picture import FOLDER, CannotDrawError


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for picture in PICTURES.values():
        try:
            for palette in picture.palettes:
                picture.file(palette).write_bytes(picture.content(palette))
        except CannotDrawError as missing:
            print(f"{picture.name} is left as it is: {missing}")
    for document in DOCUMENTS:
        document.write_text(embedded(document), encoding="utf-8")


if __name__ == "__main__":
    main()
