#!/usr/bin/env python3
"""Score weights on a validation set: every image once, whatever the number of ranks.

    python validate.py DIR --ckpt_path output/RUN/model_best.pth.tar
    torchrun --nproc_per_node=8 validate.py DIR --ckpt_path FILE     # eight cards share the images

A checkpoint of train.py says which model it holds and how its images were prepared; options given
here win over it.
"""
import sys
import time
from pathlib import Path

from mobilenetv3 import config, entry, options


def main(cfg):
    # Imported here so that --help, and a misspelt option, answer without loading PyTorch.
    import torch

    from mobilenetv3 import build, checkpoint, data, dist, engine, logfmt, models, runfolder

    # Device, then ranks: the device is bound before the process group starts.
    who = dist.ranks()
    device, note = build.device(cfg, who)
    dist.init(who, device)

    # Model: as the checkpoint says, or as the options do.
    if isinstance(cfg.pretrained, str):  # a file, as train.py takes it, not timm's weights
        cfg.ckpt_path = cfg.pretrained
    state = checkpoint.load(cfg.ckpt_path) if cfg.ckpt_path else {}
    fill_in(cfg, state)
    source = data.open_source(
        cfg.dataset, cfg.data_path, cfg.val_split, cfg.train_split, cfg.dataset_download
    )
    models.set_fused_activations(device.has_fused_activations)
    model = models.create_model(**model_options(cfg, state, source))
    if state:
        checkpoint.load_weights(model, state, cfg.ckpt_path)
    else:
        models.load_timm_weights(model)
    model = model.to(device.torch_device, memory_format=build.memory_format(cfg))
    precision = build.precision(cfg, device)
    precision.prepare(model)
    loader = build.val_loader(cfg, source, device, who)

    # Score.
    folder = Path(cfg.output) if cfg.output else None
    if folder and who.is_main:
        runfolder.claim(folder, resume=False)
        config.save(cfg, folder / runfolder.CONFIG)
    run = runfolder.RunFolder(folder, who.is_main)
    run.log(logfmt.Run(
        model=model.config["arch"], data=source.name, device=device.type, ranks=who.world,
        batch_size=build.val_batch(cfg, who) * who.world, epochs=0, amp=precision.amp_type,
        torch=torch.__version__, img_size=cfg.img_size, fps_warmup=0,
    ).line())
    for line in filter(None, (note, device.note)):
        run.log(line)
    started = time.time()
    score = engine.evaluate(
        model, run.progress(loader, "validation"), precision, cfg.print_freq, run.log
    )
    seconds = time.time() - started
    rate = score.images / seconds
    run.log(f"=> {score.images} images, loss {score.loss:.4f}, {rate:.1f} images/s")
    run.log(logfmt.Accuracy(score.acc1, score.acc5).line())
    run.metrics(epoch=(state.get("epoch") or 0), val_acc1=score.acc1, val_acc5=score.acc5,
                val_loss=score.loss, val_images=score.images, seconds=seconds)
    run.close()
    dist.barrier()
    dist.shutdown()


def fill_in(cfg, state):
    """Take what the command line left open from the checkpoint's run, or as train.py has it."""
    saved = state.get("config") if isinstance(state.get("config"), dict) else {}
    defaults = options.train_parser().defaults()
    for name in ("img_size", "crop_pct", "interpolation", "mean", "std"):
        if getattr(cfg, name) is None:
            setattr(cfg, name, saved.get(name, defaults[name]))


def model_options(cfg, state, source):
    """Constructor options of the model whose weights are to be scored.

    Raises:
        ValueError: the options, the checkpoint and the data set do not belong together.
    """
    from mobilenetv3 import models

    given = {"bn_eps": cfg.bn_eps, "bn_momentum": cfg.bn_momentum, "pad_type": cfg.pad_type,
             "width_rule": cfg.width_rule, "num_classes": cfg.num_classes}
    given = {name: value for name, value in given.items() if value is not None}
    saved = state.get("model")
    if not isinstance(saved, dict):
        if not cfg.model:
            raise ValueError(
                f"{cfg.ckpt_path} does not say which model its weights are for: add --model NAME"
            )
        return dict({"num_classes": len(source.classes)}, arch=cfg.model, **given)
    if cfg.model and models.canonical_name(cfg.model) != models.canonical_name(saved["arch"]):
        raise ValueError(
            f"{cfg.ckpt_path} holds a {saved['arch']}, not the {cfg.model} that --model asks for"
        )
    classes = state.get("classes")
    if classes and list(classes) != list(source.classes):
        raise ValueError(
            f"{cfg.ckpt_path} was trained on other classes ({len(classes)}: "
            f"{', '.join(classes[:3])}, ...) than those of {source.name} ({len(source.classes)}: "
            f"{', '.join(source.classes[:3])}, ...); give the --data_path it belongs to"
        )
    return dict(saved, **given)


if __name__ == "__main__":
    sys.exit(entry.run(main, config.parse(options.validate_parser()), "validate.py"))
