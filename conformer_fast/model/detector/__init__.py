"""The paper's detectors: a Conformer backbone, a feature pyramid, a region proposal network and two heads."""
