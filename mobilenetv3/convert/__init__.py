"""Checkpoints of other packages: read, loaded, and written by their names.

    from mobilenetv3 import convert
    weights = convert.read("mobilenet_v3_large-5c1a4163.pth")
    model = convert.build(weights)                           # eps, padding, graph, classes included
    notes = convert.load_into(my_model, weights)             # strictly, into a model there is
    convert.save(weights, "large.safetensors")               # our own form
    convert.save(weights, "large.ckpt", to="mindcv")         # by MindCV's names

On the command line: python -m mobilenetv3.convert SRC DST [--to FAMILY].
"""
from .load import build, load_into
from .weights import Weights, read
from .write import TARGETS, save

__all__ = ["TARGETS", "Weights", "build", "load_into", "read", "save"]
