"""Shared by all commands: the parser, one-line errors, exit codes and suggestions. Uses the standard library only.

    guarded(name, command, argv)    -> exit code; an ImnetError becomes one line on stderr
    Parser(prog=..., ...)           argparse that raises UsageErrors with a suggestion
    suggest(word, known)            -> "did you mean ...?", by spelling and by meaning, or ""

Exit codes are those of ``imnet.errors``; 1 is a failure with a traceback, 130 a Ctrl-C with nothing to save.
"""

from __future__ import annotations

import argparse
import ctypes
import difflib
import errno
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, TextIO

from imnet.errors import UNSET, ImnetError, IOFailure, Preempted, UsageError
from imnet.resources import FULL, exhausted

PR_SET_PDEATHSIG = 1

# Other trainers' names for our options: each word of a value means its key, if the command has that option.
MEANINGS = {
    "model": "arch architecture network net backbone model_name a",
    "model_options": "dropout drop drop_path width depth model_kwargs",
    "data": "dataset dataset_name data_set",
    "data_dir": "data_path data_root datadir dataset_dir root root_dir",
    "data.image_px": "image_size img_size input_size imgsz img resolution size train_crop_size crop_size",
    "batch_size": "batch bs b batch_images train_batch_size per_device_train_batch_size",
    "workers": "num_workers j dataloader_num_workers nworkers",
    "epochs": "epoch max_epochs num_epochs n_epochs num_train_epochs max_steps iterations steps n",
    "lr": "learning_rate base_lr lr_max max_lr",
    "optim.kind": "optimizer optimiser opt optim",
    "optim.weight_decay": "wd weight_decay decay l2",
    "optim.momentum": "momentum mom",
    "schedule.kind": "scheduler sched lr_scheduler lr_scheduler_type lr_schedule schedule",
    "schedule.warmup_epochs": "warmup warmup_epochs lr_warmup_epochs warmup_steps",
    "schedule.milestones_epochs": "milestones decay_milestones lr_steps",
    "label_smoothing": "smoothing ls",
    "mixup_alpha": "mixup",
    "cutmix_alpha": "cutmix",
    "ema_decay": "ema model_ema model_ema_decay swa",
    "grad_clip": "clip_grad clip clip_grad_norm max_grad_norm gradient_clip_val clip_norm",
    "micro_batch_images": "grad_accum grad_accum_steps gradient_accumulation_steps accumulate_grad_batches accum_iter"
    " accumulation_steps micro_batch micro_batch_size",
    "precision": "amp fp16 bf16 fp32 half mixed_precision amp_dtype dtype native_amp autocast",
    "compile": "torchcompile torch_compile jit",
    "gpus": "num_gpus ngpus gpu devices n_gpus nproc_per_node world_size g",
    "procs": "processes num_procs nprocs nproc ranks",
    "sync_bn": "sync_batchnorm sync_batch_norm sync_batchnorms syncbn synchronize_bn",
    "out": "output output_dir out_dir save_dir logdir log_dir work_dir run_dir experiment checkpoint_dir o",
    "seed": "random_seed manual_seed",
    "config": "cfg config_file c",
    "data.num_classes": "num_classes nb_classes classes n_classes nc",
    "ema_warmup": "model_ema_warmup ema_warm_up",
    "keep": "save_total_limit save_top_k checkpoint_hist keep_checkpoints max_checkpoints save_last",
    "eval_every_epochs": "eval_interval val_interval eval_every val_freq check_val_every_n_epoch",
    "checkpoint_every_epochs": "save_every save_interval save_freq save_period checkpoint_interval save_epochs",
    "log_every_steps": "log_interval print_freq log_every log_freq logging_steps",
    "augment.hflip": "hflip flip fliplr horizontal_flip random_flip",
    "augment.cutout_px": "cutout",
    "augment.random_erasing_p": "reprob random_erase random_erasing random_erase_prob erasing",
    "augment.trivial_augment": "aa auto_augment autoaugment trivialaugment augmentation",
    "augment.rand_augment_ops": "randaugment rand_augment ra rand_aug",
    "augment.color_jitter": "color_jitter colour_jitter jitter",
    "augment.crop_pad_px": "padding pad crop_padding random_crop",
    "augment.crop_scale": "scale random_resized_crop rrc",
    "augment.mean": "mean norm_mean",
    "augment.std": "std norm_std",
    "patience": "early_stopping early_stop patience_epochs early_stopping_patience es_patience",
    "class_weights": "class_weight weighted_loss loss_weights weight_classes",
    "sampler": "weighted_sampler balanced_sampler oversample oversampling class_balance",
    "lr_base_images": "scale_lr lr_base_size linear_scaling auto_scale_lr base_batch_size lr_batch_size",
    "find_lr": "lr_find lr_finder auto_lr_find lr_range_test suggest_lr",
    "find_batch_size": "auto_batch auto_scale_batch_size batch_size_finder auto_batch_size autobatch",
    "log": "logger loggers wandb tensorboard log_wandb report_to use_wandb track tracker csv_log tb",
    "list": "list_models list_recipes list_data",
    "dry_run": "dryrun check fast_dev_run",
    "weights": "pretrained pretrained_path initial_checkpoint init finetune transfer load_weights backbone_weights",
    "freeze": "freeze_backbone freeze_layers frozen",
    "deterministic": "cudnn_deterministic reproducible",
    "on_nonfinite": "nan skip_nan",
    "threads": "num_threads omp_num_threads cpu_threads",
}
# Answers for options of other trainers that do not exist here.
ANSWERS = {
    "resume_from resume_from_checkpoint checkpoint ckpt ckpt_path load auto_resume": "nothing to name: the same "
    "command goes on with its run folder (--out)",
    "eval evaluate eval_only test test_only val validate validate_only": "imnet-eval RUN evaluates a run",
    "channels_last memory_format": "nothing to set: networks are always laid out that way",
    "local_rank local-rank rank node_rank dist_url dist_backend master_addr master_port nnodes": "nothing to set: "
    "torchrun and srun say it by variables, and --gpus N starts processes itself",
    "mlflow": "metrics.jsonl and report.html of the run folder hold every figure; --log csv hands them on",
    "pin_memory prefetch_factor persistent_workers pin_mem": "nothing to set: batches are prepared ahead anyway",
    "verbose quiet v q": "nothing to set: a line each ten seconds; --debug shows the traceback of an error",
}


def nearest(word: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The name most similar to ``word``, compared by letters and digits only and without case; None if none is."""
    plain = {_plain(name): name for name in reversed(list(known))}
    meant = {"gpu": "cuda", "half": "fp16"}.get(_plain(word), _plain(word))
    close = difflib.get_close_matches(meant, plain, n=1, cutoff=cutoff)
    return plain[close[0]] if close else None


def _plain(word: str) -> str:
    return "".join(filter(str.isalnum, word.casefold()))


def suggest(word: str, known: Iterable[str]) -> str:
    """``did you mean NAME?`` for a mistyped name, or an empty string."""
    if (gpu := re.fullmatch(r"cuda:(\d+)", word)) and "cuda" in known:  # which cuda alone would not mean
        return f"give cuda, with CUDA_VISIBLE_DEVICES={gpu[1]} in the environment"
    return f"did you mean {close}?" if (close := nearest(word, known)) else ""


def option_hint(name: str, known: Sequence[str], prog: str) -> str:
    """The hint for an option that ``prog`` lacks: one of ``known``, by meaning, by its last part or by spelling.

    ``name`` and ``known`` are written with underscores and without the two dashes.
    """
    word = name.lower().removeprefix("no_")
    for row, answer in ANSWERS.items():
        if word in row.split() and "recipe" in known:
            return answer
    named = (option for option, words in MEANINGS.items() if word in words.split())
    # A command whose options have no dotted names may have the option under the last part of its name.
    meant = next((o for option in named for o in (option, option.rpartition(".")[2]) if o in known), None)
    if meant is None:
        leaves = {option.rpartition(".")[2]: option for option in reversed(known)}
        close = nearest(word, [*known, *leaves])
        meant = close if close in known else leaves.get(close or "")
    if meant is None:
        return f"{prog} --help lists every option"
    return f"did you mean --{meant if '.' in meant else meant.replace('_', '-')}?"


class Parser(argparse.ArgumentParser):
    """argparse that raises one-line UsageErrors with a suggestion, and accepts no abbreviated options.

    It adds --debug, which ``guarded`` reads, and which may be before or after the name of a subcommand.
    """

    def __init__(self, **options: Any):
        options.setdefault("allow_abbrev", False)
        super().__init__(**options)
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As argparse's, but refuses unknown words with a hint, and empty words, which as a path would mean the current
        folder."""
        empty = next((word for word in args or () if re.fullmatch(r"(--[\w-]+=)?", word)), None)
        if empty is not None:
            raise UsageError(f"got an empty word: '{empty}'", hint=UNSET)
        values, rest = self.parse_known_args(args, namespace)
        unknown = next((word for word in rest if word.startswith("-")), None)
        if unknown is not None:
            name = unknown.lstrip("-").partition("=")[0]
            hint = option_hint(name.replace("-", "_"), self._options(values), self.prog)
            raise UsageError(f"got unknown option --{name}", hint=hint)
        if rest:
            raise UsageError(f"got {rest[0]!r}, which no option takes", hint=f"{self.prog} --help")
        return values

    def _options(self, values: argparse.Namespace) -> list[str]:
        """All options of this parser and of the chosen subcommand, with underscores."""
        found: list[str] = []
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                chosen = action.choices.get(str(getattr(values, action.dest, "")))
                found += chosen._options(values) if isinstance(chosen, Parser) else []
            found += [word[2:].replace("-", "_") for word in action.option_strings if word.startswith("--")]
        return found

    def error(self, message: str) -> NoReturn:
        match = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        close = suggest(match[1], re.findall(r"[\w-]+", match[2])) if match else ""
        raise UsageError(message, hint=close or f"{self.prog} --help lists every option")


def at_home(word: str) -> str:
    """The word with ``~`` expanded where a shell does not do it: after ``--out=`` or ``packed:``, and in quotes."""
    option, place = re.fullmatch(r"((?:--[\w.-]+=)?(?:packed:)?)(.*)", word, re.DOTALL).groups()  # pyright: ignore[reportOptionalMemberAccess]
    return option + os.path.expanduser(place)


def guarded(name: str, command: Callable[[list[str]], int], argv: list[str] | None, *fewer: str) -> int:
    """Run a command on ``argv`` (by default this process's arguments); returns its exit code. ``fewer`` says how it
    takes less memory.

    A known error is printed to stderr as one line, with its traceback if ``--debug`` is given. Any other error is a bug
    and is raised, so that Python prints its traceback.
    """
    argv = [at_home(word) for word in (sys.argv[1:] if argv is None else argv)]
    printable()
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # see imnet/__init__.py
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if "--debug" not in argv:
        # Set before torch is imported: its warnings, with C++ frames, would repeat the one-line error.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ["MPLBACKEND"] = "agg"  # matplotlib fails at a name that it does not know, e.g. Qt4Agg in an old profile
    try:
        _check_current_folder()
        code = command(argv)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        complain(f"{name}: interrupted")
        return 130
    except (ImnetError, ImportError, OSError, MemoryError, RuntimeError) as error:
        failure = error if isinstance(error, ImnetError) else failure_of(error, *fewer)
        if failure is None:
            raise
        if not isinstance(error, BrokenPipeError):
            complain(f"{traceback.format_exc() if '--debug' in argv else ''}{name}: {failure}")
        return failure.exit_code


def failure_of(error: Exception, *fewer: str) -> ImnetError | None:
    """The error for an exception that is no bug, else None: the system is exhausted (for ``fewer`` see there), a path
    cannot even be examined (too long, a circle of links, or no permission), or printing failed, because the reader is
    gone (| head) or the disk of > FILE is full. Output is then discarded, since Python would report the error again
    when it exits."""
    failure = exhausted(error, *fewer)
    if failure is not None or not isinstance(error, OSError):
        return failure
    if error.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM) and error.filename is not None:
        file = os.fsdecode(error.filename)
        return IOFailure(f"cannot be used: {error.strerror}", file=file, hint="choose another path")
    full = error.errno in FULL and error.filename is None
    if not (full or isinstance(error, BrokenPipeError)):
        return None
    into_nothing(sys.stdout)
    hint = "free some space there" if full else "nobody reads it any more"
    return IOFailure(f"output not written: {error.strerror}", hint=hint)


def _check_current_folder() -> None:
    """Raise IOFailure if the shell's current folder has been removed: torch would not even find its libraries."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise IOFailure("the current folder has been removed", hint="cd to one that is there") from error


def complain(text: str) -> None:
    """Print to stderr. A failure is ignored, since the exit code counts even if nobody reads the reason."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        into_nothing(sys.stderr)


def into_nothing(stream: TextIO) -> None:
    """Redirect a stream to /dev/null, buffered output included, which Python could not write when it exits."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, stream.fileno())
    os.close(nothing)


def printable() -> None:
    """Print characters that the terminal's encoding lacks as escapes, so that an odd locale does not end a run.

    Streams that the caller has closed (``>&-``, some daemons) are opened on /dev/null: otherwise the next file would
    get their number, and libraries would write their stderr output into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def die_with(parent: int) -> Callable[[], None]:
    """A function for a new process to call, so that it gets SIGTERM, and saves, when ``parent`` ends for any reason.
    Only Linux supports this; elsewhere the signal is not set up."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)

    def ask() -> None:
        if prctl is not None:
            prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(Preempted.exit_code)

    return ask
