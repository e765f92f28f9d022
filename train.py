#!/usr/bin/env python3
"""Train MobileNetV3 or MobileNetV2 on Ascend NPU, NVIDIA GPU or CPU.

    python train.py                                           # built-in demo data, about 2 minutes
    python train.py -c configs/mobilenetv3/mobilenetv3_large_100_ascend_1p.yaml --data_path DIR
    torchrun --nproc_per_node=8 train.py -c configs/... --data_path DIR      # eight cards, one host
    torchrun --nproc_per_node=8 train.py -c configs/... --data_path DIR --dry_run    # what it takes

--batch_size is the batch of all ranks together. `--help` lists every option; test/*.sh wrap this
script in the manner of Ascend's ModelZoo.
"""
import contextlib
import sys

from mobilenetv3 import config, entry, options

# Options whose default is the model's own, or its weights'.
OPEN = ("bn_eps", "bn_momentum", "pad_type", "width_rule", "stem_stride")


def main(cfg):
    """A run, or a trial of one, of which nothing stays but what it told."""
    from mobilenetv3 import trial

    with trial.Scratch() as scratch:
        draw = run(cfg, scratch)
    if draw is not None:
        # Here, where no loader is in sight: matplotlib leaves cycles that hold the frames it was
        # called from, and loader processes that are found so end late, by force.
        draw()


def run(cfg, scratch):
    """Returns what is to be called once all is closed; None for nothing."""
    # Imported here so that --help, and a misspelt option, answer without loading PyTorch.
    import torch

    from mobilenetv3 import (
        build,
        compiling,
        data,
        dist,
        distill,
        dryrun,
        engine,
        finetune,
        interrupt,
        keep,
        logfmt,
        lrfind,
        models,
        optim,
        profiling,
        replicas,
        results,
        resuming,
        runfolder,
        snapshot,
        training,
        validated,
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
    # Before the checkpoint is chosen: until then another run may write one.
    lock = None
    if cfg.resume and writes(cfg, who) and folder.is_dir():
        lock = runfolder.lock(folder)
    resume = resuming.find(cfg.resume, folder, who)
    build.require_classifier(cfg.model)
    weights = None if resume else build.start_weights(cfg)
    said = resume.model(cfg.model) if resume else weights.config if weights else {}
    model = models.create_model(cfg.model, **model_options(cfg, len(source.classes), said))
    notes = load_start(model, weights, cfg.pretrained and not resume)
    frozen = finetune.freeze(model, cfg.freeze_stages, cfg.freeze_backbone)
    model = model.to(device.torch_device, memory_format=build.memory_format(cfg, device))
    device.tune()
    images = cfg.batch_size * cfg.grad_accum_steps  # of an update
    lr = cfg.lr * images / cfg.scale_lr if cfg.scale_lr else cfg.lr
    optimizer = optim.create_optimizer(
        model, cfg.opt, lr, cfg.momentum, cfg.weight_decay, cfg.opt_eps, cfg.opt_betas,
        cfg.filter_bias_and_bn, finetune.lr_scales(model, cfg.backbone_lr_scale, cfg.layer_decay),
        device.fused_optimizers,
    )
    optim.set_form(optimizer, cfg.optimizer_form, device)
    schedule = optim.Schedule(
        optimizer, cfg.sched, cfg.epochs, optim.updates_per_epoch(steps, cfg.grad_accum_steps),
        cfg.decay_epochs, cfg.decay_rate, cfg.warmup_epochs, cfg.warmup_lr, cfg.min_lr,
        cfg.cooldown_epochs, cfg.sched_on_updates, cfg.lr_noise,
    )
    ema = optim.create_ema(model, cfg.model_ema and not cfg.evaluate, cfg.model_ema_decay,
                           cfg.optimizer_form, cfg.model_ema_warmup)
    if cfg.sync_bn and who.world > 1:
        model = replicas.sync_batchnorm(model, device)
    precision = build.precision(cfg, device)
    precision.prepare(model, optimizer)  # after the average, which is kept in float32
    parallel = replicas.wrap(model, device, who, precision.gradients_stay)
    if not cfg.evaluate:
        side = cfg.train_img_size or cfg.img_size
        replicas.settle(parallel.train(), precision.forward,
                    torch.zeros(2, 3, side, side, device=device.torch_device))
    criterion = optim.create_criterion(cfg.smoothing, cfg.mixup > 0 or cfg.cutmix > 0)
    teacher = build.teacher(cfg, model.config["num_classes"], precision, device)
    told, settings = [], vars(cfg)  # what the log and the checkpoints say of the options
    if teacher:
        told = teacher.notes(cfg.distill_alpha, cfg.distill_temperature, source.classes)
        settings = dict(settings, teacher_weights=teacher.digest)

    # Resume, then the run folder: a checkpoint that does not fit must not leave a folder behind.
    parts = snapshot.Parts(model, optimizer, precision, ema, device)
    place = snapshot.Place(cfg.start_epoch or 0)
    if resume and cfg.evaluate:
        place = snapshot.put_back_weights(resume.state, resume.path, model, source.classes)
    elif resume:
        snapshot.check(resume.state, resume.path, parts, settings, source.classes,
                       train_loader.images, train_loader.order)
        place = snapshot.put_back(resume.state, parts)
    run, lock = open_run(cfg, folder, who, place.epoch, lock, scratch)
    total_steps = cfg.max_steps or schedule.epochs * steps
    clock = Clock(warmup=min(10, total_steps // 4))
    run.log(logfmt.Run(
        model=model.config["arch"], data=source.name, device=device.type, ranks=who.world,
        batch_size=cfg.batch_size, epochs=0 if cfg.evaluate else schedule.epochs,
        amp=precision.amp_type, torch=torch.__version__, img_size=cfg.img_size,
        fps_warmup=clock.warmup, max_steps=cfg.max_steps or 0,
    ).line())
    run.start(results.start_of(device.torch_device, who.world, place.epoch, place.step))
    if cfg.scale_lr:
        run.log(f"=> learning rate {lr:g}: --lr {cfg.lr:g} x {images} / {cfg.scale_lr}")
    fused = optim.fused_note(cfg.opt, device.fused_optimizers)
    rates = finetune.rates_note(cfg.backbone_lr_scale, cfg.layer_decay)
    compiled = compiling.compile_step(model, criterion, cfg.compile, cfg.grad_accum_steps, run.log)
    if teacher:  # after the labels' loss was compiled: the teacher's part runs eagerly
        criterion = distill.DistillationLoss(criterion, teacher, cfg.distill_alpha,
                                             cfg.distill_temperature)
        train_loader.observe = criterion.see
    start = resume.notes(settings, who.world) if resume else [describe_start(cfg)]
    for line in filter(None, (note, device.note, lock and lock.note, *source.note.splitlines(),
                              train_loader.decode_note, precision.note, fused, compiled,
                              *told, *build.train_notes(cfg, train_loader.images), *notes, frozen,
                              rates, *start)):
        run.log(line)

    examiner = validated.Examiner(val_loader, source.classes, run.path, who.is_main, run.log)
    if cfg.evaluate:
        seen = validated.Seen()
        score = engine.evaluate(model, val_loader, precision, cfg.print_freq, run.log, seen)
        run.log(logfmt.Accuracy(score.acc1, score.acc5).line())
        if cfg.output:
            examiner.write(seen, {"val_loss": score.loss, "val_acc1": score.acc1,
                                  "val_acc5": score.acc5, "val_images": score.images})
        dist.shutdown()
        return

    # Training.
    keeper = keep.Keeper(run.path, cfg.keep_last, cfg.keep_every,
                         keep.Position(place.epoch, place.step), run.log) if who.is_main else None
    train_loader.bad_files = data.BadFiles(
        cfg.max_bad_files, train_loader.images, run.path, who.is_main, run.log,
        dist.gather_bytes if who.world > 1 else None,
    )
    watch = interrupt.Watch(cfg.checkpoint_every, cfg.checkpoint_minutes,
                            interrupt.start_pulse(who, cfg.dist_timeout), train_loader.bad_files)
    watch.listen()
    profile = engine.Unprofiled()
    if cfg.profile and who.is_main:
        profile = profiling.Profile(device, run.path, cfg.profile, run.log)
    loop = engine.Loop(cfg.grad_accum_steps, cfg.print_freq, run.log, watch, profile)
    job = training.Job(
        who, parts, parallel, criterion, schedule, train_loader,
        None if cfg.skip_validation else val_loader, source.classes, run, keeper, clock, loop,
        total_steps, cfg.seed, cfg.dist_bn, cfg.on_nan == "restore", settings, examiner,
    )
    draw = None
    try:
        if cfg.dry_run:
            copies = dryrun.copies_kept(cfg.keep_last, cfg.keep_every, schedule.epochs)
            dryrun.rehearse(job, place, resume.state if resume else {}, cfg.img_size, folder,
                            copies)
        elif cfg.lr_find:
            draw = lrfind.search(job, *cfg.lr_find_range, cfg.lr_find, folder, lr / cfg.lr)
        else:
            if resume and keeper is not None:
                resuming.bring_best(resume, run.path, run.log)
            best = training.train(job, place, resume.state if resume else {})
    except entry.Interrupted:
        interrupt.leave_together(keeper)
        raise
    except BaseException:  # the error is what is told, but a checkpoint under way is finished
        if keeper is not None:
            with contextlib.suppress(keep.NotSaved):
                keeper.close()
        raise
    finally:
        profile.close()
        run.end_progress()
    if keeper is not None:
        keeper.close()
        if not is_trial(cfg):
            for line in resuming.last_lines(folder, best):
                run.log(line)
    run.close()
    watch.close()
    dist.barrier()
    dist.shutdown()
    return draw


def model_options(cfg, classes, said):
    """Constructor options of the model; what the user left open as `said`, or the model's own."""
    if cfg.num_classes and cfg.num_classes < classes:
        raise ValueError(
            f"--num_classes {cfg.num_classes} is less than the {classes} classes of the data set"
        )
    given = {name: said.get(name) for name in OPEN}
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


def describe_start(cfg):
    """What a run that is not resumed starts from, for the log."""
    weights = cfg.ckpt_path or cfg.pretrained
    if weights is True:
        weights = f"timm's of {cfg.model}"
    if cfg.resume == "auto":
        where = f"weights: {weights}" if weights else "the beginning"
        return f"=> no checkpoint in {cfg.output} yet: starting from {where}"
    return f"=> weights loaded: {weights}" if weights else ""


def writes(cfg, who):
    """Whether this rank writes to the run folder; an evaluation leaves nothing unless told where.

    A trial leaves a run that goes on alone.
    """
    return who.is_main and not is_trial(cfg) and (bool(cfg.output) or not cfg.evaluate)


def is_trial(cfg):
    """Whether there is to be no run, but a trial of one."""
    return bool(cfg.dry_run or cfg.lr_find)


def open_run(cfg, folder, who, epoch, lock, scratch):
    """Claim the run folder, if that has not been done, and write the configuration to it.

    Returns:
        the run folder and its lock.
    """
    from mobilenetv3 import runfolder

    if cfg.evaluate and not cfg.output:
        folder = None
    elif who.is_main:
        if not cfg.lr_find:  # which writes beside a run
            runfolder.check_source(folder, cfg.resume)
        if is_trial(cfg):
            folder = scratch.inside(folder, is_shared=bool(cfg.resume or cfg.lr_find))
        runfolder.claim(folder, resume=bool(cfg.resume))
        lock = lock or runfolder.lock(folder)
        name = runfolder.CONFIG if not (folder / runfolder.CONFIG).exists() else (
            f"config.from_epoch_{epoch}.yaml"
        )
        config.save(cfg, folder / name)
    kept = sys.maxsize if cfg.evaluate else epoch  # of the epochs' metrics: it makes none again
    return runfolder.RunFolder(folder, who.is_main, cfg.log_tensorboard, kept), lock


if __name__ == "__main__":
    sys.exit(entry.run(main, config.parse(options.train_parser()), "train.py"))
