"""From an ONNX file to an Ascend offline model (.om): ATC's command line and AIPP's file.

Written from Huawei's documents of both tools. Neither these files nor what ATC makes of them has
been run on an NPU here.
"""
import shlex
import subprocess
from typing import List, Sequence

DYNAMIC_BATCHES = (1, 2, 4, 8, 16)
"""The batch sizes that a model of any batch is compiled for: ATC wants a list of them."""

FORMATS = {1: "YUV400_U8", 3: "RGB888_U8"}  # channels -> AIPP's name of such uint8 images


def aipp_config(img_size: int, mean: Sequence[float], std: Sequence[float]) -> str:
    """A static AIPP configuration: the NPU takes uint8 images and normalises them itself.

    AIPP computes (pixel - mean_chn - min_chn) * var_reci_chn for each channel. mean_chn holds
    integers only, so the whole mean stands in min_chn.

    Args:
        img_size: pixels a side of the images, which come cropped.
        mean, std: of images scaled to 0..1, one number a channel: 3 for RGB, 1 for grey.
    """
    lines = [
        "aipp_op {",
        "    aipp_mode: static",
        "    related_input_rank: 0",
        f"    input_format: {FORMATS[len(mean)]}",
        f"    src_image_size_w: {img_size}",
        f"    src_image_size_h: {img_size}",
        "    crop: false",
        "    csc_switch: false",
        "    rbuv_swap_switch: false",
    ]
    for channel, (center, spread) in enumerate(zip(mean, std)):
        lines += [
            f"    mean_chn_{channel}: 0",
            f"    min_chn_{channel}: {center * 255.0:.9g}",
            f"    var_reci_chn_{channel}: {1.0 / (spread * 255.0):.9g}",
        ]
    return "\n".join([*lines, "}", ""])


def command(onnx_file: str, om_file: str, input_name: str, input_shape: Sequence[int],
            soc_version: str, aipp_file: str = "") -> List[str]:
    """ATC's command line, word by word.

    Args:
        om_file: where the offline model goes; its name ends in .om.
        input_shape: (N, C, H, W); N is -1 for a model of any batch.
        soc_version: the chip, such as Ascend310P3; `npu-smi info` shows its name.
        aipp_file: "" for a model that takes the floats that the ONNX file takes.
    """
    assert om_file.endswith(".om")
    words = [
        "atc",
        "--framework=5",  # ONNX
        f"--model={onnx_file}",
        f"--output={om_file[:-len('.om')]}",
        "--input_format=NCHW",
        f"--input_shape={input_name}:{','.join(map(str, input_shape))}",
        f"--soc_version={soc_version}",
    ]
    if input_shape[0] < 0:
        words.append(f"--dynamic_batch_size={','.join(map(str, DYNAMIC_BATCHES))}")
    if aipp_file:
        words.append(f"--insert_op_conf={aipp_file}")
    return words


def shown(words: Sequence[str]) -> str:
    """A command line as it is typed in a shell."""
    return " ".join(map(shlex.quote, words))


def run(words: Sequence[str]) -> None:
    """Run ATC; what it prints goes where this process prints.

    Raises:
        ValueError: it cannot be started, or its exit status is not 0.
    """
    try:
        status = subprocess.run(list(words), check=False).returncode
    except OSError as error:
        raise ValueError(f"{words[0]} could not be started: {error.strerror}") from error
    if status:
        raise ValueError(
            f"{words[0]} failed with exit status {status}, see its lines above; the files it was "
            "given are kept"
        )
