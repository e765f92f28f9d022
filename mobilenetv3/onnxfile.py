"""A network as an ONNX model whose graph is plain: what every reader knows, and nothing twice.

onnx and onnxruntime are imported when they are needed: the rest of the package does without them.
"""
import contextlib
import copy
import inspect
import io
import warnings
from typing import Callable, Dict, Tuple

import torch
from torch import Tensor, nn

from mobilenetv3.models import set_fused_activations
from mobilenetv3.models.layers import Conv2dSame, HardSwish, same_padding

INPUT, OUTPUT = "input", "output"
OPSETS = (11, 20)
"""First and last version of ONNX's operators that are written. Before 11 padding and clipping look
different; 20 is the last that PyTorch's TorchScript-based exporter was made for, and ATC reads up
to 13 (CANN 5 and 6) or 18 (CANN 7)."""


class _PaddedConv(torch.autograd.Function):
    """A convolution with numbers for its padding, which ONNX's Conv takes side by side.

    PyTorch's own has no padding that differs from side to side; exported, it would be a Pad with
    the graph that computes its sizes.
    """

    @staticmethod
    def forward(ctx, x, weight, pads, stride, groups):
        top, left, bottom, right = pads
        x = nn.functional.pad(x, [left, right, top, bottom])
        return nn.functional.conv2d(x, weight, None, stride, groups=groups)

    @staticmethod
    def symbolic(g, x, weight, pads, stride, groups):
        kernel = weight.type().sizes()[2:]
        return g.op("Conv", x, weight, pads_i=pads, strides_i=stride, group_i=groups,
                    kernel_shape_i=kernel, dilations_i=[1, 1])


class _FixedConv2dSame(Conv2dSame):
    """Conv2dSame for images of one size."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.bias is None
        top, bottom = same_padding(int(x.shape[2]), self.kernel_size[0], self.stride[0])
        left, right = same_padding(int(x.shape[3]), self.kernel_size[1], self.stride[1])
        pads = [top, left, bottom, right]
        return _PaddedConv.apply(x, self.weight, pads, list(self.stride), self.groups)


@contextlib.contextmanager
def _activations_in_parts():
    """Add, Clip, Div and Mul, which every reader of ONNX knows; HardSwish came with opset 14."""
    fused = HardSwish.fused
    set_fused_activations(False)
    try:
        yield
    finally:
        set_fused_activations(fused)


def write(model: nn.Module, img_size: int, batch_size: int, opset: int,
          described: Dict[str, str]) -> bytes:
    """The content of an ONNX file.

    The graph consists of convolutions with their norms folded in and of simple arithmetic; no size
    is computed at run time, and every constant is there once.

    Args:
        model: in evaluation mode, on the CPU.
        batch_size: the one batch it takes; 0 for any.
        opset: version of ONNX's operators, within OPSETS.
        described: the metadata.

    Raises:
        ValueError: onnx or onnxruntime is not installed, or PyTorch cannot write this opset.
    """
    onnx, _ = packages()
    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise ValueError(
            f"ONNX opset {opset} cannot be written; expected {OPSETS[0]} to {OPSETS[1]}"
        )
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if isinstance(module, Conv2dSame):
            module.__class__ = _FixedConv2dSame
    sample = torch.zeros(batch_size or 1, model.config["in_chans"], img_size, img_size)
    any_batch = {INPUT: {0: "batch"}, OUTPUT: {0: "batch"}}
    options = {}
    if "dynamo" in inspect.signature(torch.onnx.export).parameters:
        options["dynamo"] = False  # the newer exporter's lowest opset is above what ATC reads
    buffer = io.BytesIO()
    with _activations_in_parts(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on the exporter's own future
        try:
            torch.onnx.export(
                plain, (sample,), buffer, opset_version=opset, input_names=[INPUT],
                output_names=[OUTPUT], dynamic_axes=None if batch_size else any_batch, **options,
            )
        except ValueError as error:
            raise ValueError(
                f"PyTorch {torch.__version__} cannot write ONNX opset {opset} ({error})"
            ) from error
    written = onnx.load_model_from_string(buffer.getvalue())
    _tidy(onnx, written.graph)
    written.producer_name, written.producer_version = "mobilenetv3", torch.__version__
    onnx.helper.set_model_props(written, described)
    onnx.checker.check_model(written, full_check=True)
    return written.SerializeToString()


def packages() -> Tuple:
    """onnx and onnxruntime.

    Raises:
        ValueError: one of them is not installed.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise ValueError(
            f"--format onnx needs a package that is not installed ({error}): "
            "pip install onnx onnxruntime"
        ) from error
    return onnx, onnxruntime


def _tidy(onnx, graph) -> None:
    """Leave out what does not compute: Identity, and constants that are there twice."""
    known, same = {}, {}  # value -> the name that keeps it; every other name -> that name
    outputs = {output.name for output in graph.output}

    def is_new(name, key):
        same[name] = known.setdefault(key, name)
        return same[name] == name

    def value(tensor):
        array = onnx.numpy_helper.to_array(tensor)
        return array.dtype.str, array.shape, array.tobytes()

    weights = [one for one in graph.initializer if is_new(one.name, value(one))]
    nodes = []
    for node in graph.node:
        node.input[:] = [same.get(name, name) for name in node.input]
        if node.op_type == "Identity" and node.output[0] not in outputs:
            same[node.output[0]] = node.input[0]
        elif node.op_type != "Constant" or is_new(node.output[0], value(node.attribute[0].t)):
            nodes.append(node)
    del graph.initializer[:]
    graph.initializer.extend(weights)
    del graph.node[:]
    graph.node.extend(nodes)


def reader(content: bytes) -> Callable[[Tensor], Tensor]:
    """(N, C, H, W) -> outputs, computed by onnxruntime on the CPU."""
    _, onnxruntime = packages()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(images):
        return torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])
    return run
