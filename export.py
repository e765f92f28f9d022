#!/usr/bin/env python3
"""Write a network with its weights as ONNX, TorchScript or safetensors.

    python export.py --ckpt_path output/RUN/model_best.pth.tar --format onnx

The file is written once it has answered real images as PyTorch does. For Ascend NPUs, the AIPP file
and ATC's command line that belong to it are made, too, and ATC is run where it is on PATH.
"""
import os
import shutil
import sys
from pathlib import Path

from mobilenetv3 import entry
from mobilenetv3.options.data import PREPARE
from mobilenetv3.options.export import parse_export
from mobilenetv3.text import printable

CHECK_IMAGES = 64
"""Images that are compared, at most."""


def main(cfg):
    # Imported here so that --help, and a misspelt option, answer without loading PyTorch.
    from mobilenetv3 import exporting, files

    # The network, and where it goes.
    sys.stdout.reconfigure(errors="backslashreplace")  # a name the terminal has no letters for
    source, model = load(cfg)
    prepare = model.data_preprocessor.replaced(model, vars(cfg))
    output = output_of(cfg, source or model.config["arch"])
    aipp, offline = companions(output)
    runs_atc = cfg.format == "onnx" and not cfg.skip_atc and shutil.which("atc") is not None
    written = [output, *([aipp] if cfg.format == "onnx" else []), *([offline] if runs_atc else [])]
    if source and output.exists() and output.samefile(os.path.expanduser(source)):
        raise ValueError(f"{output} holds the weights themselves; give --output another name")
    files.claim_files(written, cfg.force)

    # Export and compare; only what passes is written.
    exported = export(cfg, source, model, prepare)
    images, shown = check_images(cfg.check_images, prepare)
    same = exporting.compare(model, exported.run, images, batch_size(cfg))
    told = f"{exported.runtime} and PyTorch differ by {same.largest:.2g} at most on {shown}"
    if not same.largest <= same.allowed(cfg.tolerance):
        raise ValueError(f"{told}, and {same.allowed(cfg.tolerance):.2g} passes; nothing was "
                         "written (--tolerance sets what passes)")
    print(f"=> {told} ({same.allowed(cfg.tolerance):.2g} passes); the best class is the same for "
          f"{same.same_class} of {same.images}")
    files.write_atomically(output, lambda file: file.write(exported.content))
    print(f"=> {cfg.format} file of {len(exported.content) / 1e6:.1f} MB: "
          f"{printable(output.resolve())}")
    if cfg.format == "onnx":
        to_ascend(cfg, prepare, output, aipp, offline, runs_atc)


def load(cfg):
    """The file of the weights ("" for timm's) and the network.

    Raises:
        ValueError: it is no classifier.
    """
    from mobilenetv3 import api

    source = cfg.ckpt_path or (cfg.pretrained if isinstance(cfg.pretrained, str) else "")
    model = api.init_model(
        cfg.model, source or None, "cpu", pretrained=not source, ema=cfg.ema
    ).float()
    arch = model.config["arch"]
    if arch.startswith("lraspp_"):
        raise ValueError(f"{source} holds a {arch}, which segments; export.py writes classifiers")
    for note in model.notes:
        print(f"=> {printable(note)}")
    return source, model


def batch_size(cfg):
    """The one batch that the exported network takes; 0 for any."""
    return 0 if cfg.format != "onnx" or cfg.dynamic else cfg.batch_size or 1


def export(cfg, source, model, prepare):
    """The network in the format that was asked for, in memory."""
    from mobilenetv3 import convert, exporting
    from mobilenetv3.convert import own

    images = {name: getattr(prepare, name) for name in PREPARE}
    if cfg.format == "safetensors":  # in the form that every command of this package reads again
        # The class names as the file has them; the network has words in the place of synsets.
        classes = convert.read(source).classes if source else None
        state = own.checkpoint_of({}, model.config, images, classes, {})
        return exporting.to_safetensors(model, own.metadata_of(state))
    described = exporting.metadata(model, model.classes, images)
    if cfg.format == "torchscript":
        return exporting.to_torchscript(model, prepare.img_size, described)
    return exporting.to_onnx(
        model, prepare.img_size, batch_size(cfg), cfg.opset or 11, described
    )


def output_of(cfg, source):
    """--output, or beside the weights and under their name, with the ending of the format."""
    from mobilenetv3.exporting import SUFFIXES

    if cfg.output:
        return Path(cfg.output).expanduser()
    for ending in (".pth.tar", ".pth", ".pt", ".safetensors", ".ckpt", ".tar"):
        if source.endswith(ending):
            source = source[:-len(ending)]
            break
    return Path(source + SUFFIXES[cfg.format]).expanduser()


def companions(output):
    """AIPP's file and the offline model that belong to an ONNX file."""
    name = output.name[:-len(".onnx")] if output.name.endswith(".onnx") else output.name
    return output.with_name(name + ".aipp.cfg"), output.with_name(name + ".om")


def check_images(paths, prepare):
    """The images to compare on, (N, C, img_size, img_size), and words for them."""
    import torch

    from mobilenetv3 import predictions

    if prepare.in_chans not in (1, 3):
        shape = (2, prepare.in_chans, prepare.img_size, prepare.img_size)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        return noise, f"noise, there being no images of {prepare.in_chans} channels"
    if not paths:
        images, shown = built_in_images()
        return prepare(images), shown
    images, empty = predictions.find_images(paths)
    if empty or not images:
        raise FileNotFoundError(f"--check_images {empty[0]}: there are no images in that folder")
    count = min(CHECK_IMAGES, len(images))
    shown = f"{count} images" if count == len(images) else f"{count} of {len(images)} images"
    return prepare([images[index * len(images) // count] for index in range(count)]), shown


def built_in_images():
    """Real images that come with the package's requirements, and words for them."""
    try:
        from sklearn.datasets import load_sample_images

        images = load_sample_images().images
        return images, f"{len(images)} photographs"
    except (ImportError, OSError):  # some distributors leave the photographs out
        from mobilenetv3.data import demo

        images = [next((demo.folder() / "val" / digit).iterdir()) for digit in "0123456789"]
        return images, f"{len(images)} digits of the demo set"


def to_ascend(cfg, prepare, output, aipp, offline, runs_atc):
    """Write AIPP's file, show ATC's command line, and where that is wanted run it."""
    from mobilenetv3 import atc, files, onnxfile

    channels, size = prepare.in_chans, prepare.img_size
    has_aipp = channels in atc.FORMATS
    if has_aipp:
        text = atc.aipp_config(size, prepare.mean, prepare.std)
        files.write_atomically(aipp, lambda file: file.write(text.encode("ascii")))
        print(f"=> AIPP: {printable(aipp.resolve())}\n{text}=> with it the NPU takes uint8 images "
              "(N, H, W, C) and normalises them; without --insert_op_conf it takes what the ONNX "
              "file takes")
    words = atc.command(
        str(output), str(offline), onnxfile.INPUT, (batch_size(cfg) or -1, channels, size, size),
        cfg.soc_version or "Ascend310P3", str(aipp) if has_aipp else "",
    )
    print(atc.shown(words), flush=True)
    if runs_atc:
        atc.run(words)
        print(f"=> offline model: {printable(offline.resolve())}")
    elif not cfg.skip_atc:
        print("=> atc is not on PATH: run this line where CANN is installed")


if __name__ == "__main__":
    sys.exit(entry.run(main, parse_export(), "export.py"))
