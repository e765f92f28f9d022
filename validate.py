#!/usr/bin/env python3
"""Score weights on a validation set: every image once, whatever the number of ranks.

    python validate.py DIR --ckpt_path output/RUN/model_best.pth.tar
    python validate.py DIR --ckpt_path A.pth B.ckpt --json scores.json     # several make a table
    torchrun --nproc_per_node=8 validate.py DIR --ckpt_path FILE     # eight cards share the images
    python validate.py DIR --ckpt_path FILE --img_size 256 --crop_pct 0.95 --tta_flip

A file of weights says which model it holds and how its images are to be prepared; options given
here win over it.
"""
import sys
import time
from argparse import Namespace
from pathlib import Path

from mobilenetv3 import config, entry, options
from mobilenetv3.options.data import PREPARE

OPEN = ("bn_eps", "bn_momentum", "pad_type", "width_rule", "stem_stride")
"""What of the network the command line may say beside its name."""


def main(cfg):
    # Imported here so that --help, and a misspelt option, answer without loading PyTorch.
    from mobilenetv3 import build, candidates, dist, models, results, runfolder
    from mobilenetv3.data import fetch

    # Device, then ranks: the device is bound before the process group starts.
    who = dist.ranks()
    device, note = build.device(cfg, who)
    dist.init(who, device)

    # Images and weights. Whatever does not fit is refused before the first image is scored.
    source = build.val_source(cfg, cfg.dataset_download)
    models.set_fused_activations(device.has_fused_activations)
    files = [cfg.pretrained] if isinstance(cfg.pretrained, str) else cfg.ckpt_path
    every = candidates.read(files, cfg.model, cfg.ema, {name: getattr(cfg, name) for name in OPEN})
    settings = [prepared(cfg, candidate) for candidate in every]
    for candidate in every:
        candidates.check_classes(candidate, source, cfg.num_classes)
    folder = Path(cfg.output) if cfg.output else None
    details = detail_folders(cfg, every)
    lock = None
    if who.is_main:
        lock = claim_outputs(cfg, folder, details)

    # Score one after the other.
    run = runfolder.RunFolder(folder, who.is_main)
    for line in filter(None, (*source.note.splitlines(), note, device.note, lock and lock.note)):
        run.log(line)
    found = [
        score(own, candidate, source, device, who, run, where)
        for own, candidate, where in zip(settings, every, details)
    ]
    if len(found) > 1:
        for line in table(found):
            run.log(line)
    if cfg.json and who.is_main:
        results.write_json(cfg.json, dict(
            results.about(device.torch_device), ranks=who.world, data={
                "name": source.name, "dataset": cfg.dataset, "path": fetch.shown(cfg.data_path),
                "split": cfg.val_split, "labels": cfg.val_labels, "images": len(source.samples),
                "classes": len(source.classes),
            }, results=found,
        ))
    run.close()
    dist.barrier()
    dist.shutdown()


# ----------------------------------------------------------------------------------------- scoring


def score(cfg, candidate, source, device, who, run, details):
    """Score one candidate, with a configuration of its own; returns its figures."""
    from mobilenetv3 import build, confusion, engine, logfmt

    model = candidate.model.to(device.torch_device, memory_format=build.memory_format(cfg, device))
    precision = build.precision(cfg, device)
    precision.prepare(model)
    loader = build.val_loader(cfg, source, device, who)
    log_start(cfg, candidate, source, device, who, run, precision)
    how = []
    if cfg.recalibrate_bn:
        how.append(recalibrated(cfg, candidate, device, who, precision))
    model, changes = as_scored(cfg, model, device)
    for line in how + changes:
        run.log(f"=> {line}")
    table = confusion.Confusion(
        len(source.classes), candidate.model.config["num_classes"], device.torch_device
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
        "file": candidate.file, "arch": candidate.model.config["arch"], "family": candidate.family,
        "top1": total.acc1, "top5": total.acc5, "loss": total.loss, "images": total.images,
        "correct1": total.correct1, "correct5": total.correct5, "seconds": seconds,
        "images_per_second": rate, "batch_size": build.val_batch(cfg, who) * who.world,
        "amp": precision.amp_type, "prepare": {name: getattr(cfg, name) for name in PREPARE},
        "model": candidate.model.config, "notes": candidate.notes + how + changes,
    }
    if table:
        counts = table.total()  # by every rank
        if who.is_main:
            found["per_class"] = write_details(run, details, counts, source.classes)
    return found


def recalibrated(cfg, candidate, device, who, precision):
    """Estimate the batch norms of a candidate anew, and write it if asked; returns a note."""
    from mobilenetv3 import build, convert, recalibrate

    loader, batches = build.recalibration_loader(cfg, device, who)
    model = candidate.model
    norms = recalibrate.recalibrate(
        model, (batch for _, batch in zip(range(batches), loader)), precision)
    images = batches * build.val_batch(cfg, who) * who.world
    note = f"{norms} batch norms estimated anew over {images} images of {cfg.train_split}"
    if cfg.save and who.is_main:
        weights = candidate.weights
        state = dict(weights.state_dict)
        state.update((name, value.detach().cpu().to(state[name].dtype))
                     for name, value in model.named_buffers() if name in state)
        prepare = {name: getattr(cfg, name) for name in PREPARE}  # what they were estimated with
        convert.save(weights._replace(state_dict=state, prepare=prepare,
                                      notes=[*candidate.notes, note]), cfg.save)
        note += f", written to {cfg.save}"
    return note


def as_scored(cfg, model, device):
    """The network in the form that is scored, and notes on it."""
    from mobilenetv3 import build, mirror, models

    notes = []
    # Measured on CPUs only; half precision rounds the folded weights otherwise than the others.
    folds = (device.module is None and not cfg.apex) if cfg.fuse_bn is None else cfg.fuse_bn
    if folds:
        model = models.fuse_conv_bn(model).to(memory_format=build.memory_format(cfg, device))
        notes.append("batch norms folded into the convolutions (--fuse_bn=false keeps them)")
    if cfg.tta_flip:
        model = mirror.Mirrored(model)
        notes.append("mean probabilities of each image and its mirror image")
    return model, notes


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


def detail_folders(cfg, every):
    """Where --per_class writes for each candidate: folders of their own where there are several."""
    if not cfg.per_class:
        return [None] * len(every)
    root = Path(cfg.output if cfg.per_class is True else cfg.per_class)
    if len(every) == 1:
        return [root]
    names = [Path(candidate.file).name.split(".")[0] for candidate in every]
    return [root / f"{number}_{name}" for number, name in enumerate(names, 1)]


def claim_outputs(cfg, folder, details):
    """Refuse, before any work, to write over what is there.

    Returns:
        the lock of the folder, None where there is no folder.
    """
    from mobilenetv3 import confusion, files, runfolder

    lock = None
    if folder:
        runfolder.claim(folder, resume=False)
        lock = runfolder.lock(folder)
        config.save(cfg, folder / runfolder.CONFIG)
    wanted = [where / name for where in details if where for name in confusion.FILES]
    files.claim_files([*wanted, *filter(None, [cfg.json, cfg.save])], cfg.force)
    return lock


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
