#!/usr/bin/env python3
"""Score weights on a validation set: every image once, whatever the number of ranks.

    python validate.py DIR --ckpt_path output/RUN/model_best.pth.tar
    python validate.py DIR --ckpt_path A.pth B.ckpt --json scores.json     # several make a table
    torchrun --nproc_per_node=8 validate.py DIR --ckpt_path FILE     # eight cards share the images

A file of weights says which model it holds and how its images are to be prepared; options given
here win over it.
"""
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

from mobilenetv3 import config, entry, options
from mobilenetv3.options.data import PREPARE


class Candidate(NamedTuple):
    """Weights that are to be scored, in their network."""

    file: str
    """Their file, or what --pretrained stands for."""
    model: Any
    prepare: Dict[str, Any]
    """How their images are prepared, as far as they say."""
    classes: Optional[List[str]]
    """Names of the classes, where the weights say them."""
    family: str
    notes: List[str]


def main(cfg):
    # Imported here so that --help, and a misspelt option, answer without loading PyTorch.
    from mobilenetv3 import build, dist, models, results, runfolder

    # Device, then ranks: the device is bound before the process group starts.
    who = dist.ranks()
    device, note = build.device(cfg, who)
    dist.init(who, device)

    # Images and weights. Whatever does not fit is refused before the first image is scored.
    source = build.val_source(cfg, cfg.dataset_download)
    models.set_fused_activations(device.has_fused_activations)
    candidates = read_candidates(cfg)
    settings = [prepared(cfg, candidate) for candidate in candidates]
    for candidate in candidates:
        check_classes(candidate, source, cfg.num_classes)
    folder = Path(cfg.output) if cfg.output else None
    details = detail_folders(cfg, candidates)
    if who.is_main:
        claim_outputs(cfg, folder, details)

    # Score one after the other.
    run = runfolder.RunFolder(folder, who.is_main)
    for line in filter(None, (*source.note.splitlines(), note, device.note)):
        run.log(line)
    found = [
        score(own, candidate, source, device, who, run, where)
        for own, candidate, where in zip(settings, candidates, details)
    ]
    if len(found) > 1:
        for line in table(found):
            run.log(line)
    if cfg.json and who.is_main:
        results.write_json(cfg.json, dict(
            results.about(device.torch_device), ranks=who.world, data={
                "name": source.name, "dataset": cfg.dataset, "path": cfg.data_path,
                "split": cfg.val_split, "labels": cfg.val_labels, "images": len(source.samples),
                "classes": len(source.classes),
            }, results=found,
        ))
    run.close()
    dist.barrier()
    dist.shutdown()


# ----------------------------------------------------------------------------- what is to be scored


def read_candidates(cfg):
    """The networks of the command line with their weights, on the CPU."""
    files = [cfg.pretrained] if isinstance(cfg.pretrained, str) else cfg.ckpt_path
    return [from_file(cfg, file) for file in files] if files else [published(cfg)]


def given_options(cfg):
    """What the command line says of the network beside its name."""
    given = {"bn_eps": cfg.bn_eps, "bn_momentum": cfg.bn_momentum, "pad_type": cfg.pad_type,
             "width_rule": cfg.width_rule, "stem_stride": cfg.stem_stride}
    return {name: value for name, value in given.items() if value is not None}


def from_file(cfg, file):
    """A file of weights of any family, in the network that it is for.

    Raises:
        ValueError: it is not for the network that the command line names.
    """
    from mobilenetv3 import build, convert, models

    weights, given = convert.read(file, ema=cfg.ema), given_options(cfg)
    build.require_classifier(weights.config["arch"])
    if cfg.model and models.canonical_name(cfg.model) != weights.config["arch"]:
        weights = convert.read(file, ema=cfg.ema, arch=cfg.model)
    unknown = sorted(given.keys() - weights.config.keys())
    if unknown:
        raise ValueError(f"--{unknown[0]}: {file} holds a {weights.config['arch']}, which has none")
    weights = weights._replace(config={**weights.config, **given})
    model = convert.build(weights)
    notes = weights.notes + [f"{name} {value}, as given here" for name, value in given.items()]
    return Candidate(file, model, weights.prepare, weights.classes, weights.family, notes)


def published(cfg):
    """timm's weights of the model's name."""
    from mobilenetv3 import api

    model = api.init_model(dict(given_options(cfg), arch=cfg.model), None, "cpu", pretrained=True)
    prepare = {name: getattr(model.data_preprocessor, name) for name in PREPARE}
    return Candidate(f"timm/{model.config['arch']}", model, prepare, None, "timm", model.notes)


def check_classes(candidate, source, num_classes):
    """Refuse weights whose classes are not the data set's.

    Raises:
        ValueError: the names differ, or the numbers do.
    """
    file, outputs = candidate.file, candidate.model.config.get("num_classes", 0)
    names, wanted = candidate.classes, source.classes
    if num_classes and num_classes != outputs:
        raise ValueError(f"--num_classes is {num_classes}, and {file} has {outputs} classes")
    if names and list(names) != list(wanted) and not is_imagenet_in_words(names, wanted):
        raise ValueError(
            f"{file} was trained on other classes ({len(names)}: {', '.join(names[:3])}, ...) than "
            f"those of {source.name} ({len(wanted)}: {', '.join(wanted[:3])}, ...); give the "
            "--data_path it belongs to"
        )
    # Outputs without a class are possible (train.py --num_classes), but have to be told.
    if outputs < len(wanted) or (outputs > len(wanted) and not names and not num_classes):
        raise ValueError(
            f"{file} has {outputs} classes, and {source.name} has {len(wanted)}; give the "
            "--data_path that the weights belong to"
        )


def is_imagenet_in_words(names, wanted):
    """Whether one list has ImageNet's synsets and the other 1,000 names such as "tench".

    Both are then in the order of the sorted synsets, which is everyone's.
    """
    from mobilenetv3.data.labels import synsets

    return list(wanted) == synsets() and len(names) == len(wanted) and not set(names) & set(wanted)


# ----------------------------------------------------------------------------------------- scoring


def score(cfg, candidate, source, device, who, run, details):
    """Score one candidate, with a configuration of its own; returns its figures."""
    from mobilenetv3 import build, confusion, engine, logfmt

    model = candidate.model.to(device.torch_device, memory_format=build.memory_format(cfg, device))
    precision = build.precision(cfg, device)
    precision.prepare(model)
    loader = build.val_loader(cfg, source, device, who)
    log_start(cfg, candidate, source, device, who, run, precision)
    table = confusion.Confusion(
        len(source.classes), model.config["num_classes"], device.torch_device
    ) if cfg.per_class else None
    started = time.perf_counter()
    total = engine.evaluate(
        model, run.progress(loader), precision, cfg.print_freq, run.log, table
    )
    seconds = time.perf_counter() - started
    candidate.model.to("cpu")  # the next one needs the memory
    rate = total.images / seconds
    run.log(f"=> {total.images} images, loss {total.loss:.4f}, {rate:.1f} images/s")
    run.log(logfmt.Accuracy(total.acc1, total.acc5).line())
    run.metrics(file=candidate.file, val_acc1=total.acc1, val_acc5=total.acc5,
                val_loss=total.loss, val_images=total.images, seconds=seconds)
    found = {
        "file": candidate.file, "arch": model.config["arch"], "family": candidate.family,
        "top1": total.acc1, "top5": total.acc5, "loss": total.loss, "images": total.images,
        "correct1": total.correct1, "correct5": total.correct5, "seconds": seconds,
        "images_per_second": rate, "batch_size": build.val_batch(cfg, who) * who.world,
        "amp": precision.amp_type, "prepare": {name: getattr(cfg, name) for name in PREPARE},
        "model": model.config, "notes": candidate.notes,
    }
    if table:
        counts = table.total()  # by every rank
        if who.is_main:
            found["per_class"] = write_details(run, details, counts, source.classes)
    return found


def log_start(cfg, candidate, source, device, who, run, precision):
    """What is about to be scored, for the log."""
    import torch

    from mobilenetv3 import build, logfmt
    from mobilenetv3.predictions import shown

    run.log(logfmt.Run(
        model=candidate.model.config["arch"], data=source.name, device=device.type,
        ranks=who.world, batch_size=build.val_batch(cfg, who) * who.world, epochs=0,
        amp=precision.amp_type, torch=torch.__version__, img_size=cfg.img_size, fps_warmup=0,
    ).line())
    run.log(f"=> weights: {shown(candidate.file)}")
    for note in candidate.notes:
        run.log(f"=> {note}")


def prepared(cfg, candidate):
    """The configuration for one candidate: what was left open of the images, as its weights say.

    Where they say nothing, as train.py has it.
    """
    from mobilenetv3 import data

    own = Namespace(**vars(cfg))
    defaults = dict(options.train_parser().defaults(), mean=data.IMAGENET_MEAN,
                    std=data.IMAGENET_STD)
    for name in PREPARE:
        if getattr(own, name) is None:
            said = candidate.prepare.get(name)
            setattr(own, name, defaults[name] if said is None else said)
    return own


# ----------------------------------------------------------------------------------------- results


def detail_folders(cfg, candidates):
    """Where --per_class writes for each candidate: folders of their own where there are several."""
    if not cfg.per_class:
        return [None] * len(candidates)
    root = Path(cfg.output if cfg.per_class is True else cfg.per_class)
    if len(candidates) == 1:
        return [root]
    names = [Path(candidate.file).name.split(".")[0] for candidate in candidates]
    return [root / f"{number}_{name}" for number, name in enumerate(names, 1)]


def claim_outputs(cfg, folder, details):
    """Refuse, before any work, to write over what is there."""
    from mobilenetv3 import confusion, files, runfolder

    if folder:
        runfolder.claim(folder, resume=False)
        config.save(cfg, folder / runfolder.CONFIG)
    wanted = [where / name for where in details if where for name in confusion.FILES]
    files.claim_files([*wanted, *filter(None, [cfg.json])], cfg.force)


def write_details(run, folder, counts, classes):
    """Write the accuracy of each class and the confusion matrix; returns the former, for JSON."""
    from mobilenetv3 import confusion, inference

    words = inference.class_names(len(classes), classes)
    names = confusion.names_of(words, counts.shape[1])
    fault = confusion.write(folder, counts, names, f"{int(counts.sum())} images")
    run.log(f"=> {', '.join(confusion.FILES[:2] if fault else confusion.FILES)} in "
            f"{folder.resolve()}")
    if fault:
        run.log(f"=> no {confusion.FILES[2]}: {fault}")
    return [
        {"index": one.index, "class": classes[one.index], "name": one.name, "images": one.images,
         "correct": one.correct, "top1": one.acc1} for one in confusion.per_class(counts, names)
    ]


def table(found):
    """The figures of several candidates, as the lines of a Markdown table."""
    from mobilenetv3 import results
    from mobilenetv3.predictions import shown

    head = ("file", "arch", "Top-1", "Top-5", "loss", "images", "images/s")
    return results.markdown(head, [
        (shown(one["file"]), one["arch"], f"{one['top1']:.3f}", f"{one['top5']:.3f}",
         f"{one['loss']:.4f}", str(one["images"]), f"{one['images_per_second']:.1f}")
        for one in found
    ], texts=2)


if __name__ == "__main__":
    sys.exit(entry.run(main, config.parse(options.validate_parser()), "validate.py"))
