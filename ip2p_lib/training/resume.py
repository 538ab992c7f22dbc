"""Checkpoints of a training run, and exact resuming after any stop (ours).

    with resumable_run(state, "runs/editor", backup_dir=drive) as run:
        for step in train(state, latents, schedule, settings, run_seed=0):
            run.log_step(step)

Run it again after any stop; it ends in the same bits. A kill (SIGKILL, power, a lost
machine) costs at most the steps since the last save; Ctrl-C, a notebook's stop button
and SIGTERM save first. The log of losses is part of the checkpoint, so that it has
every step exactly once; ``losses.json`` is written from it at every save.
"""

import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ip2p_lib import checkpoint
from ip2p_lib.distributed import broadcast_scalar, rank, world_size
from ip2p_lib.files import remove_partials, require_room, run_lock, write_json
from ip2p_lib.training.state import CHECK_EVERY, TrainState
from ip2p_lib.training.train import NUM_BINS, TrainStep

LOSSES = "losses.json"
LOG = "log"  # the tensor in a checkpoint that is not part of the TrainState
COLUMNS = ("step", "loss", "grad_norm", "lr")  # of the log; then those by timestep bin
WIDTH = len(COLUMNS) + 2 * NUM_BINS


def save(
    root: str | Path, state: TrainState, *, keep: int = 2, log: Tensor | None = None
) -> Path:
    """Write ``root/step-0000123``, then delete all but the ``keep`` newest checkpoints.

    Raises:
        FloatingPointError: a tensor is not finite; nothing is written.
        OSError, CheckpointError: as ``checkpoint.save``; older checkpoints stay.
    """
    state.require_finite()
    tensors = state.tensors() | ({} if log is None else {LOG: log})
    folder = Path(root) / f"step-{state.step:07d}"
    checkpoint.save(folder, tensors, state.metadata())
    checkpoint.prune(root, keep)
    return folder


def resume(
    root: str | Path, state: TrainState, *, backup_dir: str | Path | None = None
) -> checkpoint.Checkpoint | None:
    """Load the newest intact checkpoint into ``state``; None if there is none.

    ``backup_dir`` is used if it holds a newer one. Warnings name damaged checkpoints
    that were skipped, and options that differ from those it was saved under.

    Raises:
        CheckpointError: there are checkpoints, but every one is damaged.
        ValueError: the checkpoint is of another U-Net, or the two folders hold
            checkpoints of two runs.
    """
    folders = [folder for folder in (root, backup_dir) if folder]
    if len(folders) > 1 and len({*map(_first_step, folders)} - {""}) > 1:
        raise ValueError(
            f"{root} and {backup_dir} hold checkpoints of two different runs: their "
            "logs begin otherwise. Choose another backup_dir, or another folder."
        )
    newest = checkpoint.latest(*folders)
    if newest is None:
        return None
    for problem in newest.refused:
        warnings.warn(f"{problem} {newest.folder} is older.", stacklevel=2)
    tensors = {name: t for name, t in newest.tensors.items() if name != LOG}
    try:
        state.restore(tensors, newest.state)
    except ValueError as error:
        raise ValueError(
            f"{newest.folder} cannot be resumed. {error}; choose another folder."
        ) from error
    saved, own = newest.state["options"], state.options.to_dict()
    if saved != own:
        text = f"{newest.folder} was saved under {saved}, and {own} rounds otherwise."
        warnings.warn(text, stacklevel=2)
    return newest


def _first_step(root: str | Path) -> str:
    """The log of a run's first step, which its data, seed and weights determine.

    Empty if no checkpoint in ``root`` is intact and has a log.
    """
    for folder in checkpoint.numbered(Path(root)):
        with suppress(checkpoint.CheckpointError, FileNotFoundError, SafetensorError):
            checkpoint.verify(folder)
            with safe_open(folder / checkpoint.TENSORS, "pt") as file:
                return str(*file.get_tensor(LOG)[:1].tolist())
    return ""


@contextmanager
def catch_stop_signals(handler: Callable[..., None]) -> Iterator[None]:
    """Send SIGINT and SIGTERM to ``handler`` within the block.

    Ignored signals stay ignored, and earlier handlers return afterwards. Only the main
    thread receives signals.
    """
    previous = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                previous[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in previous.items():
            signal.signal(number, earlier)


@dataclass
class Run:
    """A resumable run; made by ``resumable_run``.

    ``log`` (n, 4 + 2 K) float64 holds step, loss, gradient norm, learning rate and
    ``TrainStep.bins`` of every step up to the last save, over all sessions.
    """

    state: TrainState
    root: Path  # folder of the run
    backup_dir: str | Path | None = None  # has every checkpoint too, if it can
    keep: int = 2  # number of newest checkpoints that stay in each folder
    every_steps: int = 200  # save at its multiples,
    every_seconds: float = 120.0  # and after so long without a save
    log: Tensor = field(default_factory=lambda: torch.empty(0, WIDTH).double())
    stop_signal: int = 0  # number of the signal that asked to stop
    _unsaved: list[TrainStep] = field(default_factory=list)
    _saved_at: float = field(default_factory=time.monotonic)

    @property
    def bins(self) -> Tensor:
        """(n, 2, K) of the log: sums of losses and numbers of examples by bin."""
        return self.log[:, len(COLUMNS) :].unflatten(1, (2, NUM_BINS))

    def prepare_folder(self) -> None:
        """Remove the remains of a killed run, and check the room on the disk."""
        checkpoint.prune(self.root, self.keep)
        remove_partials(self.root)
        self.write_losses()
        stored = len(list(self.root.glob(f"step-*/{checkpoint.MANIFEST}")))
        size = checkpoint.size_of(self.state.tensors())
        require_room(self.root, max(0, self.keep + 1 - stored) * size)

    def log_step(self, step: TrainStep) -> None:
        """Log a step that ``train`` yielded; save if due; save and stop if requested.

        KeyboardInterrupt is raised after SIGINT, SystemExit (code 143) after SIGTERM.
        """
        self._unsaved.append(step)
        stop, waited = 0, time.monotonic() - self._saved_at
        if world_size() == 1 or step.step % CHECK_EVERY == 0:  # process 0 decides
            stop = int(broadcast_scalar(self.stop_signal, self.state.device))
        if stop or step.step % self.every_steps == 0 or waited > self.every_seconds:
            self.save()
        if stop:
            self.stop_signal = stop
            self.stop()

    def save(self) -> None:
        """Save now, in the backup folder too; process 0 does it."""
        rows = [
            [s.step, s.loss, s.grad_norm, s.lr, *s.bins.flatten().tolist()]
            for s in self._unsaved
        ]
        self.log = torch.cat([self.log, self.log.new_tensor(rows).reshape(-1, WIDTH)])
        self._unsaved.clear()
        if rank() == 0:
            save(self.root, self.state, keep=self.keep, log=self.log)
            self.write_losses()
            try:
                if self.backup_dir is not None:
                    save(self.backup_dir, self.state, keep=self.keep, log=self.log)
            except (OSError, checkpoint.CheckpointError) as error:
                warnings.warn(
                    f"Step {self.state.step} is saved in {self.root} but not in the "
                    f"backup folder {self.backup_dir}; training goes on. {error}",
                    stacklevel=3,
                )
        self._saved_at = time.monotonic()

    def write_losses(self) -> None:
        """Write the log without its bins as JSON rows; not finite numbers as null."""
        rows = self.log[:, : len(COLUMNS)].tolist()
        finite = [[v if math.isfinite(v) else None for v in row] for row in rows]
        named = [dict(zip(COLUMNS, row, strict=True)) for row in finite]
        write_json(self.root / LOSSES, named)

    def handle_signal(self, number: int, frame: FrameType | None = None) -> None:
        """Note the first signal, and stop at once at the second."""
        if self.stop_signal:
            self.stop("Stopped at once: the last step is not saved.")
        self.stop_signal = number

    def stop(self, message: str = "") -> None:
        """Raise KeyboardInterrupt for SIGINT; exit with 128 + number, as in shells."""
        if self.stop_signal != signal.SIGINT:
            raise SystemExit(128 + self.stop_signal)
        saved = f"Stopped after step {self.state.step}, saved in {self.root}."
        raise KeyboardInterrupt(message or f"{saved} Run this again to go on.")


@contextmanager
def resumable_run(state: TrainState, root: str | Path, **options: Any) -> Iterator[Run]:
    """Resume from ``root`` (or ``backup_dir``), and save while the block lasts.

    A block that ends well saves once more; one that ends by an error does not, since
    the state may be of half a step. If the backup fails, a warning says so and training
    goes on.

    ``state`` is changed in place; ``root`` is created if missing; ``options`` are
    ``backup_dir`` and the next three fields of ``Run``.

    Raises:
        FolderInUseError: another run uses ``root``.
        CheckpointError, ValueError: as ``resume``.
        OSError: there is too little room for ``keep + 1`` checkpoints.
    """
    run = Run(state, Path(root), **options)
    with nullcontext() if rank() else run_lock(run.root):  # processes share the folder
        with catch_stop_signals(run.handle_signal):
            if loaded := resume(root, state, backup_dir=run.backup_dir):
                run.log = loaded.tensors.get(LOG, run.log)
            if rank() == 0:
                run.prepare_folder()
            yield run
            if run._unsaved:
                run.save()
        if run.stop_signal:
            run.stop()
