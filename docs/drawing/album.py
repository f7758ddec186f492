"""All pictures, by name."""

from . import (
    accuracy_and_speed,
    conformer_block,
    detections,
    heat_map,
    page,
    rooms,
    speed,
    time_parts,
    way_of_an_image,
)

MODULES = (
    detections,
    page,
    speed,
    accuracy_and_speed,
    time_parts,
    way_of_an_image,
    conformer_block,
    rooms,
    heat_map,
)
PICTURES = {module.PICTURE.name: module.PICTURE for module in MODULES}
