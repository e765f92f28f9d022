"""The course of a run: epoch after epoch, with its checkpoints, from wherever it stands.

What is built is handed in as one `Job`; how a step is made the `engine` knows.
"""
import time
from typing import Any, Dict, NamedTuple, Optional

from mobilenetv3 import (
    data,
    dist,
    engine,
    entry,
    logfmt,
    metrics,
    replicas,
    resuming,
    snapshot,
    validated,
)

RESTORES = 3
"""Times that a run goes back to a checkpoint after a loss that is not finite; then it gives up."""


class Job(NamedTuple):
    """All that a run consists of, on one rank."""

    who: dist.Ranks
    parts: snapshot.Parts
    parallel: Any
    """The model as all ranks train it."""
    criterion: Any
    schedule: Any
    train_loader: data.DeviceLoader
    val_loader: Optional[data.DeviceLoader]
    """None to train without validation."""
    classes: Any
    run: Any
    """Log and metrics (`runfolder.RunFolder`)."""
    keeper: Any
    """Checkpoints (`keep.Keeper`); None on all ranks but the main one."""
    clock: metrics.Clock
    loop: engine.Loop
    total_steps: int
    """Of the whole run."""
    seed: int
    dist_bn: str
    """See replicas.sync_buffers."""
    goes_back: bool
    """After a loss that is not finite, to the newest checkpoint."""
    config: Dict[str, Any]
    """The options, for whoever reads a checkpoint."""
    examiner: Any = None
    """Writes down what the best validation saw (`validated.Examiner`); None: nobody does."""


def train(job, place, state):
    """All epochs from a place on; returns the best validation.

    Args:
        state: the checkpoint that the run goes on from, for what each rank has of its own; {} for
            none.

    Raises:
        entry.Interrupted: a signal came; the run is saved.
        engine.NonFiniteLoss: the loss became NaN or infinite, and --on_nan does not go back.
    """
    run, clock = job.run, job.clock
    epoch, best, steps = place.epoch, place.best, len(job.train_loader)
    restores = RESTORES if job.goes_back else 0
    while epoch < job.schedule.epochs and epoch * steps < job.total_steps:
        started = time.monotonic()
        progress = progress_at(job, epoch, place.step, place.score)
        was_over = progress.is_over  # trained by a run that was interrupted in its validation
        record = {"epoch": epoch, "lr": begin(job, progress, state)}
        place, state = snapshot.Place(epoch + 1), {}
        while not progress.is_over:
            try:
                train_epoch(job, progress, best)
            except engine.NonFiniteLoss as error:
                restores -= 1
                if restores < 0:
                    raise
                progress = go_back(job, error)
        score = progress.score
        record.update(train_loss=score.loss, train_acc1=score.acc1, train_acc5=score.acc5)
        for line in filter(None, [job.train_loader.refused_note(dist.sum_of_numbers),
                                  job.train_loader.bad_files_note()]):
            run.log(line)
        if clock.is_measured:
            record["fps"] = clock.fps
            run.log(logfmt.Throughput(clock.fps).line())
        is_best = False
        if not was_over:
            share_buffers(job)
        if job.val_loader is not None:
            try:
                acc1, seen = validate(job, record)
            except entry.Interrupted as stop:
                save(job, progress, best)
                raise entry.Interrupted(stop.number, saved_at(job, progress)) from None
            is_best = best is None or acc1 > best["acc1"]
            best = {"acc1": acc1, "epoch": epoch} if is_best else best
            if is_best and job.examiner is not None:
                job.examiner.write(seen, record)
        epoch += 1
        # Before the checkpoint: a run killed in between resumes before this epoch, and writes its
        # line again; the other way round the line would be lost.
        run.metrics(**record, seconds=time.monotonic() - started)
        # A run that --max_steps ends inside of an epoch may go on there with more of them.
        is_whole = progress.step == steps
        save(job, engine.Progress(epoch, steps) if is_whole else progress, best, is_best)
    return best


def share_buffers(job):
    """Make one model of those of all ranks, before it is scored and saved."""
    for scored in filter(None, (job.parts.model, job.parts.ema.module)):
        replicas.sync_buffers(scored, job.dist_bn)


def progress_at(job, epoch, step, score):
    """The progress of an epoch of which so many steps are done; the run may end inside of it."""
    steps = len(job.train_loader)
    return engine.Progress(epoch, steps, job.total_steps - epoch * steps, step, score)


def begin(job, progress, state):
    """Set an epoch up, or the rest of it; returns the learning rate at its beginning."""
    who, epoch, step = job.who, progress.epoch, progress.step
    data.seed_epoch(job.parts.device, job.seed, epoch, who.rank, step)
    job.train_loader.set_epoch(epoch, step)
    for line in filter(None, [job.train_loader.size_note()]):
        job.run.log(line)
    job.schedule.at(epoch)
    lr = job.schedule.lr
    if step:
        job.schedule.at(epoch, step // job.loop.accumulate)
    job.loop.watch.begin(step)
    snapshot.put_back_rank(state, job.parts, who.rank, who.world)  # last: no draw comes between
    return lr


def train_epoch(job, progress, best):
    """Train to the end of an epoch, with a checkpoint wherever one is due."""
    parts, watch = job.parts, job.loop.watch
    batches = iter(job.run.progress(job.train_loader, progress.step))
    while True:
        engine.train_one_epoch(
            job.parallel, batches, job.criterion, parts.optimizer, parts.precision, job.schedule,
            parts.ema, job.clock, progress, job.loop,
        )
        if progress.is_over:
            return
        save(job, progress, best)
        if watch.agreed:
            raise entry.Interrupted(watch.agreed, saved_at(job, progress))


def save(job, progress, best, is_best=False):
    """Begin to write a checkpoint. Every rank must call it inside an epoch."""
    state = snapshot.take(job.parts, progress, best, job.classes, job.train_loader.images,
                          job.config, job.train_loader.order)
    if job.keeper is not None:
        job.keeper.save(state, progress.epoch, progress.step, is_best)
    job.loop.watch.saved()


def saved_at(job, progress):
    """Where an interrupted run is to be found."""
    return (f"saved in {job.run.path} (epoch {progress.epoch}, step {progress.step}); go on with "
            "--resume auto and this --output")


def go_back(job, error):
    """Put the newest checkpoint back after a loss that is not finite; training goes on behind it.

    The same steps would give the same loss: those from the checkpoint to the one that failed are
    left out. Returns the epoch's new progress.
    """
    if job.keeper is not None:
        job.keeper.flush()
    found = resuming.find("auto", job.run.path, job.who)
    if found is None:
        raise error
    place = snapshot.put_back(found.state, job.parts)
    for parameter in job.parts.model.parameters():  # of micro-steps that made no update yet
        if parameter.grad is not None:
            parameter.grad.zero_()
    step = -(-(error.step + 1) // job.loop.accumulate) * job.loop.accumulate
    score = place.score if place.epoch == error.epoch else metrics.Score()
    progress = progress_at(job, error.epoch, min(step, len(job.train_loader)), score)
    job.run.log(f"=> {error.what}; back to {found.path} (epoch {place.epoch}, step {place.step}), "
                f"and on from epoch {progress.epoch}, step {progress.step}")
    begin(job, progress, {})
    return progress


def validate(job, record):
    """Score the model, and with EMA the average, which then is what counts.

    With EMA each has a column of its own (val_acc1_trained, val_acc1_ema, ...); the names without
    an ending are of the weights that count, in every run.

    Returns:
        Acc@1 of the weights that count, and what its validation saw (`validated.Seen`).

    Raises:
        entry.Interrupted: a signal came.
    """
    (model, _, precision, ema, _), log, watch = job.parts, job.run.log, job.loop.watch
    watch.at("validating", record["epoch"], 0)

    def score_of(scored):
        loader, seen = watch.guard(job.val_loader), validated.Seen()
        score = engine.evaluate(scored, loader, precision, job.loop.print_freq, log, seen)
        number = watch.on_any_rank()
        if number:
            raise entry.Interrupted(number)
        return score, seen

    score, seen = score_of(model)
    if ema.module is not None:
        trained = score
        score, seen = score_of(precision.for_inference(ema.module))
        for weights, column in (("trained", trained), ("ema", score)):
            log(logfmt.Column(weights, column.loss, column.acc1, column.acc5).line())
            record.update({f"val_loss_{weights}": column.loss, f"val_acc1_{weights}": column.acc1,
                           f"val_acc5_{weights}": column.acc5})
    log(logfmt.Accuracy(score.acc1, score.acc5).line())
    record.update(val_loss=score.loss, val_acc1=score.acc1, val_acc5=score.acc5,
                  val_images=score.images)
    return score.acc1, seen
