"""The training loop: pipeline -> step -> flags, and now and then a log line, an evaluation or a checkpoint.

The host waits for the device only for those three.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator
from dataclasses import replace

import torch

from imnet import announce, checkpoint, device, loggers, report, resume, runfolder
from imnet.capture import NotCapturableError
from imnet.console import Console
from imnet.data.order import micro_batches
from imnet.errors import DataError, Preempted
from imnet.from_recipe import prepare
from imnet.launch import World
from imnet.metrics import MetricsLog
from imnet.mixing import Mixing
from imnet.ranks import ELSEWHERE
from imnet.recipe import Recipe
from imnet.recipe_json import dump_config, to_dict
from imnet.run_options import RunOptions
from imnet.run_state import RunState, Sources
from imnet.saver import Saver
from imnet.verdicts import Verdicts, every_epochs, note_best, stop_early
from imnet.watch import Flags, Signals, not_finite


class Trainer:
    """One rank's part of a run, from the first batch to the report."""

    def __init__(
        self,
        recipe: Recipe,
        options: RunOptions,
        place: device.Place,
        world: World,
        console: Console,
        signals: Signals,
        threads: int,
        folder: runfolder.RunFolder | None,
        sources: Sources | None = None,
    ):
        """``folder`` is the open run folder, on rank 0 only; for ``sources`` see ``prepare``."""
        self.recipe, self.options, self.place, self.world = recipe, options, place, world
        self.console, self.signals, self.folder = console, signals, folder
        self.began, saved = None, False
        if folder is not None:
            self.began = runfolder.check_same(folder.path, recipe, options, place.precision)
            saved = checkpoint.newest(folder.checkpoints) is not None
        self.setup, self.step_fn = prepare(recipe, options, place, world, threads, self.began, saved, sources)
        self.order, self.train_data = self.setup.order, self.setup.train
        sums = torch.zeros(2, dtype=torch.float64, device=place.device)
        self.state = RunState(sums=sums, final=(self.began or {}).get("final"))
        self.mixing = Mixing(recipe, world.rank)
        self.saver = Saver()
        self.log: MetricsLog | None = None  # at rank 0, while it trains
        self.flags = Flags(world, place.device, signals)
        self.verdicts = Verdicts(self.setup, self.step_fn)

    @property
    def num_steps(self) -> int:
        """Steps of the whole run; fewer than the recipe's if --patience has ended it early."""
        return (self.state.stopped or self.recipe.epochs) * self.order.steps_per_epoch

    def run(self) -> None:
        """Start or resume, train to the last epoch, evaluate and write the report."""
        for _ in self.steps():
            pass

    def steps(self) -> Generator[None]:
        """The same as a generator that yields before every step; the time spent outside is not counted as the run's."""
        found, notes = resume.resume(self.folder, self.setup, self.state, self.step_fn, self.began)
        # The files alone do not tell: after --allow-change with more epochs they are older than the last step.
        reached = self.state.step >= self.num_steps
        done = self.folder is not None and reached and runfolder.is_complete(self.folder.path)
        if self.world.share(done):  # rank 0's answer: if only one rank left, the others would wait for it
            if self.folder is not None:
                self.console.say(f"complete already: {self.folder.path} (choose another --out to train again)")
                for logger in loggers.opened(self.options.logs, self.folder.path, to_dict(self.recipe)):
                    logger.close()
                self._report(self.folder)
            return
        self._begin(found, notes)
        if self.folder is not None:
            to = self.folder.path, self.state.metrics_bytes, self.options.logs
            self.log = loggers.open_log(*to, to_dict(self.recipe))
        try:
            yield from self._fit()
        finally:
            self.saver.close()
            if self.log is not None:
                self.log.close()
        self._finish()

    def _begin(self, found: checkpoint.Checkpoint | None, notes: list[str]) -> None:
        """Print the header and warm up, and only then write: a failure before that leaves the folder as it was."""
        if self.folder is not None:
            self.console.header(announce.header(self.setup, self.state, self.folder.path, found, notes))
        start = time.perf_counter()
        self._warm_up()
        if self.place.device.type == "cuda":
            torch.cuda.synchronize()
        self.state.warm_up_s = time.perf_counter() - start
        self.console.say(f"warm-up    {self.state.warm_up_s:.1f} s (compiling, capturing, allocating: not in images/s)")
        if self.folder is not None:
            self.folder.check_room(self.step_fn.num_bytes)
            self.folder.write_run(announce.run_values(self.setup, self.state, "running"))  # makes the folder a run's
            # A change was allowed once, not for every later start with this file.
            self.folder.write_config(dump_config(self.recipe, replace(self.options, allow_change=False)))

    def _warm_up(self) -> None:
        """Compile, allocate and capture on the first batch. A step that cannot be captured runs without a CUDA graph,
        or is refused if --cuda-graphs asked for one."""
        images = min(self.recipe.data.batch_images, len(self.train_data))
        with contextlib.closing(self.train_data.epoch(0)) as batches:
            pieces = self._pieces(next(batches), 0)
        try:
            self.step_fn.warm_up(pieces, images)
        except NotCapturableError as error:
            if self.options.cuda_graphs:
                raise
            self.step_fn.graph = None
            self.console.say(f"step       not captured after all: {error.what}")
            found = replace(self.setup.execution, cuda_graphs=False, reason=f"not captured: {error.what}")
            self.setup = replace(self.setup, execution=found)

    def _pieces(self, batch: tuple[torch.Tensor, torch.Tensor], step: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """This rank's batch in micro-batches, after Mixup or CutMix if the recipe has them."""
        most = self.options.micro_batch_images
        return list(zip(*(micro_batches(t, most) for t in self.mixing(*batch, step)), strict=True))

    def _fit(self) -> Generator[None]:
        per_epoch = self.order.steps_per_epoch
        log_every = self.options.log_every_steps or max(1, per_epoch // 20)
        self.console.start(self.num_steps, self.state.step)
        self._clock = time.perf_counter()
        self._interval = (self._clock, self.state.step)
        self._life = (self.state.seconds, self.state.step)
        if self.state.step == self.num_steps:
            self._evaluate_now(log=False)  # killed between the last checkpoint and the end
        while self.state.step < self.num_steps:
            yield from self._halt()
            epoch, offset = divmod(self.state.step, per_epoch)
            with contextlib.closing(self.train_data.epoch(epoch, offset)) as batches:
                for i, batch in enumerate(batches, offset):
                    stop = self._one_step(batch, self.order.size(i))
                    if self.state.step % log_every == 0:
                        self._write_train_line()
                    if i < per_epoch - 1:
                        self._within_epoch(stop)
                        yield from self._halt()
            self._end_epoch(epoch + 1)
        self.console.stop()

    def _halt(self) -> Generator[None]:
        """Yield to the caller; a signal that arrived meanwhile stops the run here."""
        self.tick()
        yield
        now = time.perf_counter()
        self._interval = (self._interval[0] + now - self._clock, self._interval[1])
        self._clock = now
        if self.flags.asked_alone:
            self._within_epoch(True)

    def _one_step(self, batch: tuple[torch.Tensor, torch.Tensor], num_images: int) -> bool:
        """One optimiser step over ``num_images`` images of all ranks; returns whether the ranks have agreed to stop."""
        lr = self.recipe.lr_at(self.state.step, self.order.steps_per_epoch)
        batches = self._pieces(batch, self.state.step)
        backup = [b.clone() for b in self.step_fn.buffers] if self.options.max_skips else None
        _, bad = self.step_fn(batches, num_images, self.state.step, lr)
        left_out = backup is not None and self._skip_if_bad(bad, backup)
        if not left_out:
            self.state.sums += self.step_fn.told[1:]
            self.state.loss_images += num_images
        self.state.step += 1
        return self._checked(self.flags.push(self.state.step - 1, torch.zeros_like(bad) if left_out else bad))

    def _skip_if_bad(self, bad: torch.Tensor, backup: list[torch.Tensor]) -> bool:
        """Undo a bad step for --on-nonfinite skip:N, and return whether it was one. Not the default, since the host
        has to wait for the device in every step."""
        if not bool(bad):
            return False
        for buffer, old in zip(self.step_fn.buffers, backup, strict=True):
            buffer.copy_(old)
        self.state.skipped_steps += 1
        self.console.say(f"skipped    step {self.state.step}: loss or gradient is not finite")
        if self.state.skipped_steps > self.options.max_skips:
            raise self._nonfinite(self.state.step)
        return True

    def _within_epoch(self, stop: bool) -> None:
        """Save if a checkpoint is due or a signal came; at an epoch's end ``_end_epoch`` does so, after evaluating."""
        every = self.options.checkpoint_every_steps
        if stop or (every and self.state.step % every == 0):
            # Before saving: a NaN of the newest step would be in the running statistics. The host waits for it.
            stop = self._checked(self.flags.drain()) or stop
            self._save()
        if stop:
            self._raise_preempted()

    def _checked(self, flags: tuple[int | None, bool]) -> bool:
        """Whether to stop, of the flags that ``Flags`` returns; raises DataError if their step was bad."""
        bad_step, stop = flags
        if bad_step is not None:
            raise self._nonfinite(bad_step)
        return stop

    def _raise_preempted(self) -> None:
        self.saver.wait()
        what = f"{self.signals.name or ELSEWHERE}: saved at step {self.state.step} of {self.num_steps}"
        raise Preempted(what, hint="run the same command to go on")

    def _nonfinite(self, step: int) -> DataError:
        epoch, offset = divmod(step, self.order.steps_per_epoch)
        with contextlib.closing(self.train_data.epoch(epoch, offset)) as batches:
            pieces = self._pieces(next(batches), step)
        return not_finite(self.step_fn, pieces, step)

    def _write_train_line(self) -> None:
        images = self.state.loss_images or float("nan")  # 0 if every step since the last line was skipped
        loss, top1 = (total / images for total in self._sums())
        now = time.perf_counter()
        (since, first), per_epoch = self._interval, self.order.steps_per_epoch
        rate = sum(self.order.size(i % per_epoch) for i in range(first, self.state.step)) / (now - since)
        self._interval = (now, self.state.step)
        self.state.sums.zero_()
        self.state.loss_images = 0
        self.tick()
        epoch, lr = self.state.step / per_epoch, self.recipe.lr_at(self.state.step - 1, per_epoch)
        if self.log is not None:
            common = {"kind": "train", "step": self.state.step, "epoch": round(epoch, 4), "loss": loss, "lr": lr}
            self.log.write(**common, images_per_s=round(rate, 1), seconds=round(self.state.seconds, 3), top1=top1)
        done_s, done = self.state.seconds - self._life[0], self.state.step - self._life[1]
        left_s = (self.num_steps - self.state.step) * done_s / done  # done_s includes evaluations and checkpoints
        self.console.progress(self.state.step, epoch, self.recipe.epochs, loss, lr, rate, left_s)

    def _sums(self) -> list[float]:
        """Sum of losses and correct predictions since the last log line, over all ranks; the host waits here."""
        return self.world.all_reduce(self.state.sums.clone()).tolist()

    def _save(self) -> None:
        self.tick()
        sums = self._sums()
        if self.folder is not None and self.log is not None:
            self.state.metrics_bytes = self.log.sync()
            self.saver.save(self.folder, self.setup, self.state, self.step_fn, *sums)

    def tick(self) -> None:
        now = time.perf_counter()
        self.state.seconds += now - self._clock
        self._clock = now

    def _end_epoch(self, epoch: int) -> None:
        """Evaluate and save after epoch number ``epoch`` if they are due; after the last epoch they always are."""
        stop = self._checked(self.flags.drain())
        if epoch == self.recipe.epochs or epoch % every_epochs(self.setup) == 0:
            self._evaluate_now()
        self.console.say_if(self.verdicts.note_bad_images(self.state))
        last, is_best = self.state.step == self.num_steps, self.options.keeps[1] and self.state.best["epoch"] == epoch
        if last or stop or is_best or epoch % self.options.checkpoint_every_epochs == 0:
            self._save()
        if stop and not last:
            self._raise_preempted()
        self._interval = (time.perf_counter(), self.state.step)

    def _evaluate_now(self, log: bool = True) -> None:
        judged = self.verdicts.now()
        self.tick()
        epoch = self.state.step // self.order.steps_per_epoch
        self.state.judged = self.state.step, judged[0].result.top1
        note_best(self.state, judged, epoch)
        stopped = stop_early(self.state, self.setup, epoch)
        if self.state.step == self.num_steps:
            self.verdicts.in_the_end(self.state)
        if self.log is None or not log:
            return
        for part in judged:
            self.log.write(**part.values, step=self.state.step, epoch=epoch, seconds=round(self.state.seconds, 3))
            self.console.say(f"epoch {epoch}/{self.recipe.epochs}  {part.text}, {self.state.seconds:.0f} s in all)")
        self.console.say_if(stopped)

    def _finish(self) -> None:
        self.saver.wait()
        if self.folder is None:
            return
        newest, final = self.verdicts.newest, self.verdicts.final
        assert newest is not None
        announce.write_evaluation(self.folder.path, newest, self.setup.dataset, final=final)
        self.folder.write_run(announce.run_values(self.setup, self.state, "complete"))
        self._report(self.folder)

    def _report(self, folder: runfolder.RunFolder) -> None:
        report.render(run := report.load(folder.path))
        self.console.summary(report.summary(run))
