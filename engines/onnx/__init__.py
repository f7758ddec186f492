"""The network as an ONNX graph, and what runs such a graph."""

IMAGES = "images"  # the graph's input
