#!/usr/bin/env python3
"""Train MobileNetV3 or MobileNetV2 on Ascend NPU, NVIDIA GPU or CPU.

    python train.py                                           # built-in demo data, about a minute
    python train.py -c configs/mobilenetv3/mobilenetv3_large_100_ascend_1p.yaml --data_path DIR
    torchrun --nproc_per_node=8 train.py -c configs/... --data_path DIR      # eight cards, one host

--batch_size is the batch of all ranks together. `--help` lists every option; test/*.sh wrap this
script in the manner of Ascend's ModelZoo.
"""
import sys
import time

from mobilenetv3 import config, entry, options

OPEN = ("bn_eps", "bn_momentum", "pad_type", "width_rule")  # the model's own, or its weights'


def main(cfg):
    # Imported here so that --help, and a misspelt option, answer without loading PyTorch.
    import torch

    from mobilenetv3 import (
        build,
        checkpoint,
        data,
        dist,
        engine,
        finetune,
        logfmt,
        models,
        optim,
        runfolder,
    )
    from mobilenetv3.metrics import Clock

    # Device, then ranks: the device is bound before the process group starts.
    who = dist.ranks(cfg.distributed, cfg.world_size, cfg.dist_rank, cfg.dist_url)
    device, note = build.device(cfg, who)
    dist.init(who, device, cfg.dist_backend, cfg.dist_timeout)

    # Data.
    train_loader, val_loader, source = build.loaders(cfg, device, who)
    steps = len(train_loader)

    # Model, optimizer, schedule, average, precision.
    data.seed_epoch(device, cfg.seed, 0, 0)  # every rank draws the same first weights
    models.set_fused_activations(device.has_fused_activations)
    folder = runfolder.choose(cfg.output, cfg.resume, cfg.model)
    resume = runfolder.resolve_resume(cfg.resume, folder)
    build.require_classifier(cfg.model)
    weights = None if resume else build.start_weights(cfg)
    model = models.create_model(cfg.model, **model_options(cfg, len(source.classes), weights))
    notes = load_start(model, weights, cfg.pretrained and not resume)
    frozen = finetune.freeze(model, cfg.freeze_stages, cfg.freeze_backbone)
    model = model.to(device.torch_device, memory_format=build.memory_format(cfg))
    lr = cfg.lr * cfg.batch_size / cfg.scale_lr if cfg.scale_lr else cfg.lr
    optimizer = optim.create_optimizer(
        model, cfg.opt, lr, cfg.momentum, cfg.weight_decay, cfg.opt_eps, cfg.opt_betas,
        cfg.filter_bias_and_bn, finetune.lr_scales(model, cfg.backbone_lr_scale, cfg.layer_decay),
        device.fused_optimizers,
    )
    schedule = optim.Schedule(
        optimizer, cfg.sched, cfg.epochs, optim.updates_per_epoch(steps, cfg.grad_accum_steps),
        cfg.decay_epochs, cfg.decay_rate, cfg.warmup_epochs, cfg.warmup_lr, cfg.min_lr,
        cfg.cooldown_epochs, cfg.sched_on_updates, cfg.lr_noise,
    )
    ema = optim.create_ema(model, cfg.model_ema, cfg.model_ema_decay)
    if cfg.sync_bn and who.world > 1:
        model = dist.sync_batchnorm(model, device)
    precision = build.precision(cfg, device)
    precision.prepare(model, optimizer)  # after the average, which is kept in float32
    parallel = dist.wrap(model, device, who, precision.gradients_stay)
    criterion = optim.create_criterion(cfg.smoothing, cfg.mixup > 0 or cfg.cutmix > 0)

    # Resume, then the run folder: a checkpoint that does not fit must not leave a folder behind.
    epoch, best = cfg.start_epoch or 0, None
    if resume:
        epoch, best = restore(resume, cfg, model, optimizer, precision, ema)
    run = open_run(cfg, folder, who, epoch)
    total_steps = cfg.max_steps or schedule.epochs * steps
    clock = Clock(warmup=min(10, total_steps // 4))
    run.log(logfmt.Run(
        model=model.config["arch"], data=source.name, device=device.type, ranks=who.world,
        batch_size=cfg.batch_size, epochs=cfg.epochs, amp=precision.amp_type,
        torch=torch.__version__, img_size=cfg.img_size, fps_warmup=clock.warmup,
    ).line())
    if cfg.scale_lr:
        run.log(f"=> learning rate {lr:g}: --lr {cfg.lr:g} x {cfg.batch_size} / {cfg.scale_lr}")
    fused = optim.fused_note(cfg.opt, device.fused_optimizers)
    start = describe_start(cfg, resume, epoch)
    rates = finetune.rates_note(cfg.backbone_lr_scale, cfg.layer_decay)
    for line in filter(None, (note, device.note, source.note, train_loader.decode_note,
                              precision.note, fused, *notes, frozen, rates, start)):
        run.log(line)

    if cfg.evaluate:
        scored = precision.for_inference(ema.module) if ema.module else model
        score = engine.evaluate(scored, val_loader, precision, cfg.print_freq, run.log)
        run.log(logfmt.Accuracy(score.acc1, score.acc5).line())
        dist.shutdown()
        return

    # Epochs.
    loop = engine.Loop(cfg.grad_accum_steps, cfg.print_freq, cfg.max_steps or 0, run.log)
    while epoch < schedule.epochs and epoch * steps < total_steps:
        started = time.time()
        data.seed_epoch(device, cfg.seed, epoch, who.rank)
        train_loader.set_epoch(epoch)
        schedule.at(epoch)
        record = {"epoch": epoch, "lr": schedule.lr}
        score = engine.train_one_epoch(
            parallel, run.progress(train_loader, f"epoch {epoch}"), criterion, optimizer,
            precision, schedule, ema, clock, epoch, loop,
        )
        record.update(train_loss=score.loss, train_acc1=score.acc1, train_acc5=score.acc5)
        for line in filter(None, [train_loader.refused_note()]):
            run.log(line)
        if clock.is_measured:
            record["fps"] = clock.fps
            run.log(logfmt.Throughput(clock.fps).line())
        is_best = False
        if not cfg.skip_validation:
            for scored in filter(None, (model, ema.module)):  # one model on all ranks
                dist.sync_buffers(scored, cfg.dist_bn)
            acc1 = validate(model, ema, val_loader, precision, cfg.print_freq, run, record)
            is_best = best is None or acc1 > best["acc1"]
            best = {"acc1": acc1, "epoch": epoch} if is_best else best
        epoch += 1
        # Before the checkpoint: a run killed in between resumes before this epoch, and writes its
        # line again; the other way round the line would be lost.
        run.metrics(**record, seconds=time.time() - started)
        if who.is_main:
            state = snapshot(cfg, source, epoch, best, model, optimizer, precision, ema)
            checkpoint.save(folder / checkpoint.LAST, state)
            if is_best:
                checkpoint.save(folder / checkpoint.BEST, state)

    report_end(run, folder, best)
    run.close()
    dist.barrier()
    dist.shutdown()


def model_options(cfg, classes, weights):
    """Constructor options of the model; what the user left open is the weights', or its own."""
    if cfg.num_classes and cfg.num_classes < classes:
        raise ValueError(
            f"--num_classes {cfg.num_classes} is less than the {classes} classes of the data set"
        )
    given = {name: weights.config.get(name) for name in OPEN} if weights else {}
    given.update((name, getattr(cfg, name)) for name in OPEN if getattr(cfg, name) is not None)
    given = {name: value for name, value in given.items() if value is not None}
    return dict(given, num_classes=cfg.num_classes or classes, drop_rate=cfg.drop,
                drop_path_rate=cfg.drop_path)


def load_start(model, weights, pretrained):
    """Load the weights to start from, if any: a file's, or timm's; returns what is to be said."""
    from mobilenetv3 import convert, models

    if weights:
        return weights.notes + convert.load_into(model, weights)
    return models.load_timm_weights(model) if pretrained else []


def describe_start(cfg, resume, epoch):
    """What the run starts from, for the log."""
    if resume:
        return f"=> resumed from {resume} (epoch {epoch})"
    weights = cfg.ckpt_path or cfg.pretrained
    if weights is True:
        weights = f"timm's of {cfg.model}"
    if cfg.resume == "auto":
        where = f"weights: {weights}" if weights else "the beginning"
        return f"=> no checkpoint in {cfg.output} yet: starting from {where}"
    return f"=> weights loaded: {weights}" if weights else ""


def open_run(cfg, folder, who, epoch):
    """Claim the run folder and write the configuration; only the main rank touches the disk."""
    from mobilenetv3 import runfolder

    if cfg.evaluate and not cfg.output:
        folder = None  # an evaluation leaves nothing behind unless it is told where
    elif who.is_main:
        runfolder.claim(folder, resume=bool(cfg.resume))
        name = runfolder.CONFIG if not (folder / runfolder.CONFIG).exists() else (
            f"config.from_epoch_{epoch}.yaml"
        )
        config.save(cfg, folder / name)
    return runfolder.RunFolder(folder, who.is_main, cfg.log_tensorboard, epoch)


def validate(model, ema, loader, precision, print_freq, run, record):
    """Score the model, and with EMA the average, which then is what counts; returns its Acc@1."""
    from mobilenetv3 import engine, logfmt

    score = engine.evaluate(model, loader, precision, print_freq, run.log)
    if ema.module is not None:
        run.log(logfmt.Accuracy(score.acc1, score.acc5, weights="live").line())
        record["val_acc1_live"] = score.acc1
        average = precision.for_inference(ema.module)
        score = engine.evaluate(average, loader, precision, print_freq, run.log)
    run.log(logfmt.Accuracy(score.acc1, score.acc5).line())
    record.update(val_loss=score.loss, val_acc1=score.acc1, val_acc5=score.acc5,
                  val_images=score.images)
    return score.acc1


def snapshot(cfg, source, epoch, best, model, optimizer, precision, ema):
    """All that a run needs to go on, as tensors and plain containers."""
    return {
        "format": 1,
        "epoch": epoch,  # epochs done
        "arch": model.config["arch"],
        "model": model.config,
        "classes": list(source.classes),
        "state_dict": precision.model_state(model),
        "state_dict_ema": ema.state_dict(),
        "optimizer": optimizer.state_dict(),
        "precision": precision.state_dict(),
        "best_acc1": best["acc1"] if best else None,
        "best_epoch": best["epoch"] if best else None,
        "config": vars(cfg),
    }


def restore(path, cfg, model, optimizer, precision, ema):
    """Put a run back to where `snapshot` was taken; returns the next epoch and the best so far."""
    from mobilenetv3 import checkpoint, finetune

    state = checkpoint.load(path)
    checkpoint.check_resumable(state, path, model.config, has_ema=ema.module is not None)
    finetune.check_resumable(path, state.get("config", {}), vars(cfg))
    precision.load_model_state(model, state["state_dict"])
    if ema.module is not None:
        ema.module.load_state_dict(state["state_dict_ema"])
    optimizer.load_state_dict(state["optimizer"])
    precision.load_state_dict(state["precision"])
    best = {"acc1": state["best_acc1"], "epoch": state["best_epoch"]}
    return state["epoch"], best if best["epoch"] is not None else None


def report_end(run, folder, best):
    """Say where the weights are; the last line of a good run."""
    from mobilenetv3 import checkpoint, logfmt

    if best:
        path = (folder / checkpoint.BEST).resolve()
        run.log(logfmt.Best(best["acc1"], best["epoch"], str(path)).line())
    else:
        run.log(f"=> weights: {(folder / checkpoint.LAST).resolve()} (not validated)")


if __name__ == "__main__":
    sys.exit(entry.run(main, config.parse(options.train_parser()), "train.py"))
