"""Spectral ensembles: one network for each band of the same images, trained in step with the others.

The folder of an ensemble holds one run folder per band (band-0, band-1, ...). Each is the run that ``--band K`` trains
alone: the same weights, bit for bit on a CPU, whichever bands and ranks are beside it. So a band can be continued with
any other bands or by itself; if bands stand at different steps, those behind catch up first.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from imnet import checkpoint, fits, launch, runfolder
from imnet.console import Console
from imnet.data import DataSet
from imnet.data.pipelines.bands import OneBand, Together
from imnet.data.pipelines.node import Shelf, shelf_for
from imnet.device import Place
from imnet.errors import ImnetError, Preempted, UsageError, quoted
from imnet.from_recipe import build_network, first_weights, load_data, load_sources
from imnet.launch import World
from imnet.recipe import Recipe
from imnet.run_options import RunOptions
from imnet.run_state import Sources
from imnet.runfolder import band_folder
from imnet.trainer import Trainer
from imnet.watch import Signals

RANKS_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Together, the ranks on a CPU have more threads than cores (see ``of_rank``). With threads that wait actively, two
ranks on two cores took 47 s for what took 10 s with this, and 9 s in one process (2026-11-26)."""
EVERY_S = 10.0
"""Seconds between the progress lines of one band and the next."""
SUMMARY = ("top-1", "validation", "report")
"""The summary lines of a run that are also printed for a band, by their first word."""


def of_band(recipe: Recipe, band: int) -> Recipe:
    """The recipe that trains one band of the ensemble."""
    return replace(recipe, augment=replace(recipe.augment, spectral_band=band))


def shares(bands: Sequence[int], num_ranks: int) -> list[tuple[int, ...]]:
    """The bands of each rank: several bands per rank, or several ranks per band. Raises UsageError if there are more
    ranks than bands, but not a multiple of them."""
    count = len(bands)
    if num_ranks <= count:
        return [tuple(bands[count * r // num_ranks : count * (r + 1) // num_ranks]) for r in range(num_ranks)]
    if num_ranks % count:
        what = f"got {num_ranks} ranks for {count} band(s); allowed: up to {count}, or a multiple of it"
        raise UsageError(what, hint=f"take {num_ranks // count * count} ranks")
    return [(bands[r * count // num_ranks],) for r in range(num_ranks)]


def ranks_a_band(bands: Sequence[int], num_ranks: int) -> int:
    """Number of ranks that share the images of one network: a band's, or without ``bands`` the only one."""
    return max(1, num_ranks // max(1, len(bands)))


def of_rank(options: RunOptions, bands: Sequence[int]) -> RunOptions:
    """The options with which a rank runs its bands: those of a launch that trains one band alone. So a rank that has a
    band to itself uses all threads, because the number of threads decides the order of sums on a CPU."""
    if options.procs is not None:
        many = ranks_a_band(bands, options.procs)
        return replace(options, device="cpu", procs=many if many > 1 else None)
    many = ranks_a_band(bands, options.gpus or 1)
    return replace(options, gpus=many if many > 1 else None)


def train(recipe: Recipe, options: RunOptions, place: Place, signals: Signals, threads: int) -> None:
    """Train one rank's bands to the end. ``options`` are those from ``of_rank``."""
    bands = options.bands_of(recipe)
    with launch.connected(place.device, fits.settings(recipe, options, place)) as world:
        mine, near = shares(bands, world.size)[world.rank], world.part(ranks_a_band(bands, world.size))
        assert options.out is not None
        if recipe.weights is not None:
            saved = all(checkpoint.newest(band_folder(Path(options.out), band) / "checkpoints") for band in mine)
            # Weights that do not fit are refused before the data set is loaded, which may take long, as for a single
            # network. Every band reads them again.
            first_weights(recipe, build_network(recipe), near, saved=saved)
        dataset = load_data(recipe, options, world)
        # The shelf is shared by the ranks of one machine that see the same part of each batch.
        shelf = shelf_for(Path(options.out), *world.alike((socket.gethostname(), near.rank)), near.rank)
        rank = _Rank(recipe, options, place, near, signals, threads, shelf)
        if world.is_main:
            Console(signals=signals).say(f"ensemble   {told(recipe, bands, world.size)}")
        if near.size > 1:
            rank.train(mine, dataset, leads=world.is_main)
            return
    # Disconnected, because from here on no rank needs another: one may take hours longer, or be stopped alone.
    rank.train(mine, dataset, leads=world.is_main)


def told(recipe: Recipe, bands: Sequence[int], num_ranks: int) -> str:
    """Describe in words which bands are trained, and by which ranks."""
    of = f"{len(bands)} of {recipe.augment.num_bands} bands, a network each"
    if num_ranks == 1:
        return f"{of}: {' '.join(map(str, bands))}"
    each = ranks_a_band(bands, num_ranks)
    if each > 1:
        return f"{of}, {each} ranks a band: {' '.join(map(str, bands))}"
    return f"{of}, over {num_ranks} ranks: {' | '.join(' '.join(map(str, part)) for part in shares(bands, num_ranks))}"


@dataclass(frozen=True)
class _Rank:
    """Trains the bands of this process; ``world`` are the ranks that share them."""

    recipe: Recipe
    options: RunOptions
    place: Place
    world: World
    signals: Signals
    threads: int
    shelf: Shelf | None

    def train(self, bands: tuple[int, ...], dataset: DataSet, *, leads: bool) -> None:
        """Train ``bands`` in step; the rank that ``leads`` prints the lines that hold for all bands."""
        sources = load_sources(self.recipe, self.options, self.place, self.world, bands, dataset)
        with contextlib.ExitStack() as stack:
            decoder, setting = sources.train.decoder, sources.train.setting
            if self.shelf is not None and decoder is not None:
                stack.callback(self.shelf.close)
                decoder.shelf = self.shelf
                self.shelf.kept = 2 * max(setting.ahead, setting.workers)  # so many may be in preparation at once
            whole = {"train": sources.train, "test": sources.test, "val": sources.val}
            parts = {name: Together(part) for name, part in whole.items() if part is not None}
            for part in parts.values():
                stack.callback(part.close)
            runs, lead = {}, iter([True] if leads else [])
            for number, band in enumerate(bands):
                voice = Voice(band, number, len(bands), self.signals, lead=lead, enabled=self.world.is_main)
                own = replace(sources, **{name: OneBand(part, band) for name, part in parts.items()})
                with named(band):
                    runs[band] = self._run(band, voice, own, stack)
            in_step(runs)

    def _run(self, band: int, voice: Console, sources: Sources, stack: contextlib.ExitStack) -> Trainer:
        assert self.options.out is not None
        path = band_folder(Path(self.options.out), band)
        options = replace(self.options, out=str(path), bands=None)
        folder = None
        if self.world.is_main:
            folder = stack.enter_context(contextlib.closing(runfolder.RunFolder(path, options.lock)))
        recipe = of_band(self.recipe, band)
        run = Trainer(recipe, options, self.place, self.world, voice, self.signals, self.threads, folder, sources)
        stack.callback(run.step_fn.release)
        return run


def in_step(runs: dict[int, Trainer]) -> None:
    """Train all ``runs`` (by band) to the end; each round takes one step of the runs that are furthest behind. Raises
    Preempted, after all have saved, if they were asked to stop."""
    going, stopped = {band: run.steps() for band, run in runs.items()}, []
    try:
        while going:
            behind = min(runs[band].state.step for band in going)
            for band in [band for band in going if runs[band].state.step == behind]:
                try:
                    with named(band):
                        ended = next(going[band], True)
                except Preempted as error:
                    stopped.append(error)
                    ended = True
                if ended:
                    del going[band]
    finally:
        for steps in going.values():
            steps.close()
    if stopped:
        stopped[0].what += f", and {len(stopped) - 1} more band(s)" if len(stopped) > 1 else ""
        raise stopped[0]


@contextlib.contextmanager
def named(band: int) -> Iterator[None]:
    """Add the band to the message of an ImnetError in the block."""
    try:
        yield
    except ImnetError as error:
        error.what = f"band {band}: {error.what}"
        raise


class Voice(Console):
    """The console of one band, ``number`` of ``num``. It prints the band's own lines under its name, taking turns with
    the other bands. Lines that hold for all bands are printed by the first one that asks ``lead``, which they share: a
    band that is complete already prints none."""

    def __init__(self, band: int, number: int, num: int, signals: Signals, *, lead: Iterator[bool], enabled: bool):
        super().__init__(enabled, EVERY_S * num, signals)
        self._rich = None  # the bars of several bands would overwrite each other
        self.band, self.number, self.num, self.lead = band, number, num, lead

    def start(self, total_steps: int, done_steps: int) -> None:
        super().start(total_steps, done_steps)
        self._last_s -= EVERY_S * (self.num - 1 - self.number)

    def say(self, text: str) -> None:
        super().say(f"band {self.band:<5} {text}")

    def header(self, lines: list[str]) -> None:
        own = next(i for i, line in enumerate(lines) if line.startswith("run folder"))
        for line in lines[:own] if next(self.lead, False) else []:
            super().say(line)
        for line in lines[own:]:
            self.say(line)

    def summary(self, text: str) -> None:
        for line in text.splitlines():
            if line.startswith(SUMMARY):
                self.say(line)

    def progress(
        self, step: int, epoch: float, epochs: int, loss: float, lr: float, rate: float, left_s: float
    ) -> None:  # fmt: skip
        super().progress(step, epoch, epochs, loss, lr, rate, left_s * self.num)


def closing(path: Path, bands: Sequence[int]) -> str:
    """The last line that the command prints."""
    there = runfolder.bands_in(path)
    done = sum(map(runfolder.is_complete, runfolder.runs_of(path, bands)))
    others = [runfolder.is_complete(folder) for band, folder in there.items() if band not in bands]
    more = f", and {sum(others)} of the {len(others)} others there" if others else ""
    return f"{'ensemble':<18} {path}: {done} of {len(bands)} bands complete{more}; imnet-eval {quoted(path)} fuses them"
