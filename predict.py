#!/usr/bin/env python3
"""Name what is in images.

    python predict.py cat.jpg --ckpt_path mobilenet_v3_large.pth
    python predict.py photos --ckpt_path FILE --csv found.csv --sheet found.png

A file of weights says which model it holds, how images are prepared for it and what its classes are
called. An image that cannot be read is named, and the exit status is then 1; the others are
predicted all the same.
"""
import sys
import time

from mobilenetv3 import entry
from mobilenetv3.options.data import PREPARE
from mobilenetv3.options.predict import parse_predict
from mobilenetv3.text import printable


def main(cfg):
    # Imported here so that --help, and a misspelt option, answer without loading PyTorch.
    from mobilenetv3 import api, files, predictions, results

    sys.stdout.reconfigure(errors="backslashreplace")  # a name the terminal has no letters for
    files.claim_files([path for path in (cfg.csv, cfg.json, cfg.sheet) if path], cfg.force)
    paths, empty = predictions.find_images(cfg.images, cfg.recursive)
    for folder in empty:
        complain(f"there are no images in {predictions.shown(folder)}")
    if not paths:
        raise ValueError("there are no images to predict")
    model = load(cfg)
    for note in model.notes:
        print(f"=> {printable(note)}")

    # Threads read ahead while the model computes.
    tiles = []
    images = predictions.opened(paths, reader(cfg.exif), cfg.workers, 2 * cfg.batch_size)
    if cfg.sheet:
        images = with_tiles(images, tiles)
    found, started = [], time.perf_counter()
    for one in predictions.predict(images, lambda readable: api.classify(
            model, readable, cfg.batch_size, cfg.top_k)):
        found.append(one)
        if one.error:
            complain(one.error)
        else:
            print(predictions.line(one))
    seconds = time.perf_counter() - started

    # Results.
    good = [one for one in found if not one.error]
    if cfg.csv:
        predictions.write_csv(cfg.csv, found)
    if cfg.json:
        device = model.data_preprocessor.device
        results.write_json(cfg.json, dict(results.about(device), **{
            "weights": source(cfg), "arch": model.config["arch"], "notes": model.notes,
            "prepare": {name: getattr(model.data_preprocessor, name) for name in PREPARE},
            "images": len(found), "unreadable": len(found) - len(good), "seconds": seconds,
            "results": [predictions.as_json(one) for one in found],
        }))
    if cfg.sheet:
        draw_sheet(cfg.sheet, tiles, good)
    print(f"=> {len(good)} images, {len(good) / seconds:.1f} images/s, reading included")
    faults = len(found) - len(good) + len(empty)
    if faults:
        raise ValueError(f"{faults} could not be predicted and are named above; {len(good)} could")


def source(cfg):
    """The file of weights, or "" for timm's."""
    return cfg.ckpt_path or (cfg.pretrained if isinstance(cfg.pretrained, str) else "")


def load(cfg):
    """The network, ready for inference; what the command line says of its images counts."""
    from mobilenetv3 import api

    device = cfg.device if cfg.device_id is None else f"{cfg.device}:{cfg.device_id}"
    file = source(cfg)
    model = api.init_model(cfg.model, file or None, device, pretrained=not file, ema=cfg.ema)
    model.data_preprocessor = model.data_preprocessor.replaced(model, vars(cfg))
    return model


def reader(turns):
    """file -> PIL image, turned as its EXIF entry says where that is asked for."""
    from mobilenetv3.prepare import read_image, turned

    if not turns:
        return read_image
    return lambda file: turned(read_image(file))


def with_tiles(images, tiles):
    """The same images, of which the first ones are kept in small for the contact sheet."""
    from mobilenetv3 import sheet

    for file, image in images:
        if not isinstance(image, Exception) and len(tiles) < sheet.MOST:
            tiles.append(sheet.small(image))
        yield file, image


def draw_sheet(path, tiles, good):
    """Write the contact sheet of those images that could be read."""
    from mobilenetv3 import sheet

    if not good:
        print("=> no contact sheet: there is no image to show")
        return
    sheet.draw(path, [
        sheet.Tile(tile, one.top[0]["class"], f"{100.0 * one.top[0]['score']:.1f}%", one.file)
        for tile, one in zip(tiles, good)
    ])
    if len(good) > len(tiles):
        print(f"=> the contact sheet shows the first {len(tiles)} of {len(good)} images")


def complain(sentence):
    """One line on standard error."""
    print(f"predict.py: {sentence}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(entry.run(main, parse_predict(), "predict.py"))
