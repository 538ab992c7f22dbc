"""Checkpoints of a training run, and exact resuming after any stop (ours).

    with resumable_run(state, "runs/editor", backup_dir=drive) as run:
        for step in train(state, latents, schedule, settings, run_seed=0):
            run.log_step(step)

Run it again after any stop; it ends in the same bits. A kill (SIGKILL, power, a lost
machine) costs at most the steps since the last save; Ctrl-C, a notebook's stop button
and SIGTERM save first. The log of losses is part of the checkpoint, so that it has
every step exactly once; ``losses.json`` is written from it at every save.
"""

from __future__ import annotations

import math
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

from ip2p_lib import checkpoint
from ip2p_lib.distributed import broadcast_scalar, rank, world_size
from ip2p_lib.files import remove_partials, require_room, run_lock, write_json
from ip2p_lib.training.loss_weighting import NUM_BINS
from ip2p_lib.training.state import CHECK_EVERY, TrainState
from ip2p_lib.training.train import TrainStep

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

    ``backup_dir`` is used if it holds a newer one. A warning names damaged checkpoints
    that were skipped, and other options where resuming is possible.

    Raises:
        CheckpointError: there are checkpoints, but every one is damaged.
        ValueError: the checkpoint is of another U-Net.
    """
    newest = checkpoint.latest(*(folder for folder in (root, backup_dir) if folder))
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


class StopRequest:
    """Whether the run shall stop, and by which signal."""

    number: int | None = None

    def handle(self, number: int, frame: FrameType | None = None) -> None:
        """Signal handler: note the first signal, and stop at once at the second."""
        if self.number is not None:
            self.stop("Stopped at once: the last step is not saved.")
        self.number = number

    def stop(self, message: str) -> None:
        """Raise KeyboardInterrupt for SIGINT; exit with 128 + number, as in shells."""
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt(message)
        if self.number is not None:
            raise SystemExit(128 + self.number)


@contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Note SIGINT and SIGTERM within the block instead of stopping in mid-step.

    Ignored signals stay ignored, and earlier handlers return afterwards. Only the main
    thread receives signals.
    """
    request, previous = StopRequest(), {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                previous[number] = signal.signal(number, request.handle)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@dataclass
class Run:
    """A resumable run; made by ``resumable_run``.

    ``log`` (n, 4 + 2 K) float64 holds step, loss, gradient norm, learning rate and
    ``TrainStep.bins`` of every step up to the last save, over all sessions.
    """

    state: TrainState
    root: Path
    backup_dir: Path | None
    keep: int
    every_steps: int
    every_seconds: float
    stop_request: StopRequest
    log: Tensor = field(default_factory=lambda: torch.empty(0, WIDTH).double())
    _unsaved: list[TrainStep] = field(default_factory=list)
    _saved_at: float = field(default_factory=time.monotonic)

    @property
    def bins(self) -> Tensor:
        """(n, 2, K) of the log: sums of losses and numbers of examples by bin."""
        return self.log[:, len(COLUMNS) :].unflatten(1, (2, NUM_BINS))

    def log_step(self, step: TrainStep) -> None:
        """Log a step that ``train`` yielded; save if due; save and stop if requested.

        KeyboardInterrupt is raised after SIGINT, SystemExit (code 143) after SIGTERM.
        """
        self._unsaved.append(step)
        stop = self._is_stop_requested(step.step)
        waited = time.monotonic() - self._saved_at
        if stop or step.step % self.every_steps == 0 or waited > self.every_seconds:
            self.save()
        if stop:
            self.stop_if_requested()

    def _is_stop_requested(self, step: int) -> bool:
        """Whether to stop; process 0 decides for all, every ``CHECK_EVERY`` steps."""
        if world_size() > 1:
            if step % CHECK_EVERY:
                return False
            number = self.stop_request.number or 0
            number = int(broadcast_scalar(number, self.state.device))
            self.stop_request.number = number or None
        return self.stop_request.number is not None

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
            self._save_backup()
        self._saved_at = time.monotonic()

    def _save_backup(self) -> None:
        if self.backup_dir is None:
            return
        try:
            save(self.backup_dir, self.state, keep=self.keep, log=self.log)
        except (OSError, checkpoint.CheckpointError) as error:
            warnings.warn(
                f"Step {self.state.step} is saved in {self.root} but not in the backup "
                f"folder {self.backup_dir}; training goes on. {error}",
                stacklevel=4,
            )

    def write_losses(self) -> None:
        """Write the log without its bins as JSON rows; not finite numbers as null."""
        rows = [
            {
                name: v if math.isfinite(v) else None
                for name, v in zip(COLUMNS, row, strict=True)
            }
            for row in self.log[:, : len(COLUMNS)].tolist()
        ]
        write_json(self.root / LOSSES, rows)

    def stop_if_requested(self) -> None:
        """Raise what ends the run, if a signal requested it."""
        message = f"Stopped after step {self.state.step}, saved in {self.root}."
        self.stop_request.stop(f"{message} Run this again to go on.")


@contextmanager
def resumable_run(
    state: TrainState,
    root: str | Path,
    *,
    backup_dir: str | Path | None = None,
    keep: int = 2,
    every_steps: int = 200,
    every_seconds: float = 120.0,
) -> Iterator[Run]:
    """Resume from ``root`` (or ``backup_dir``), and save while the block lasts.

    A block that ends well saves once more; one that ends by an error does not, since
    the state may be of half a step.

    Args:
        state: from ``train.start``; changed in place.
        root: folder of the run, created if missing.
        backup_dir: a second folder for every checkpoint, such as one on a network
            drive. If it fails, a warning says so and training goes on.
        keep: number of newest checkpoints that stay in each folder.
        every_steps: save at its multiples, and after ``every_seconds`` without a save.

    Raises:
        FolderInUseError: another run uses ``root``.
        CheckpointError, ValueError: as ``resume``.
        OSError: there is too little room for ``keep + 1`` checkpoints.
    """
    root, backup = Path(root), Path(backup_dir) if backup_dir else None
    lock = nullcontext() if rank() else run_lock(root)  # the processes share the folder
    with lock, catch_stop_signals() as request:
        run = Run(state, root, backup, keep, every_steps, every_seconds, request)
        loaded = resume(root, state, backup_dir=backup)
        run.log = loaded.tensors.get(LOG, run.log) if loaded else run.log
        if rank() == 0:
            _prepare_folder(run)
        yield run
        if run._unsaved:
            run.save()
        run.stop_if_requested()


def _prepare_folder(run: Run) -> None:
    """Remove the remains of a killed run, and check the room on the disk."""
    checkpoint.prune(run.root, run.keep)
    remove_partials(run.root)
    run.write_losses()
    stored = len(list(run.root.glob(f"*/{checkpoint.MANIFEST}")))
    size = checkpoint.size_of(run.state.tensors())
    require_room(run.root, max(0, run.keep + 1 - stored) * size)
