"""Keep a training run safe: whatever stops it, it goes on and ends in the same bits.

    with recoverable(state, "runs/editor", mirror=drive) as run:
        print(run.banner)
        for step in train(state, latents, schedule, settings, run_seed=0):
            run.record(step)

Run it again after any stop. A kill (SIGKILL, power, a lost machine) costs the steps
since the last save at most; Ctrl-C, a notebook's stop button and SIGTERM save first.
The log of losses is part of the checkpoint, so that no step is ever missing from it or
in it twice; ``losses.csv`` is written from it, whole, at every save.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ip2p_lib import checkpoint
from ip2p_lib.distributed import agree, processes, rank
from ip2p_lib.files import atomic_write, explain_disk_errors, require_room
from ip2p_lib.run_lock import run_lock
from ip2p_lib.training import train as training
from ip2p_lib.training.loss_weighting import BANDS, band_means, band_names
from ip2p_lib.training.signals import Interruption, exception_of, noted_signals
from ip2p_lib.training.state import CHECK_EVERY, TrainState
from ip2p_lib.training.train import LOG, TrainStep

LOSSES = "losses.csv"
FIRST = ("step", "loss", "grad_norm", "lr")  # of the log's columns; then those by band
WIDTH = len(FIRST) + 2 * BANDS


@dataclass
class Run:
    """A run being kept safe; made by ``recoverable``.

    ``log`` (n, 4 + 2 K) float64 holds step, loss, gradient norm, learning rate and
    ``bands`` of every step up to the last save, whichever sitting took it.
    """

    state: TrainState
    root: Path
    mirror: Path | None
    keep: int
    every_steps: int
    every_seconds: float
    interruption: Interruption
    mark: Path
    log: Tensor = field(default_factory=lambda: torch.empty(0, WIDTH).double())
    banner: str = ""
    _unsaved: list[TrainStep] = field(default_factory=list)
    _saved_at: float = field(default_factory=time.monotonic)

    @property
    def bands(self) -> Tensor:
        """(n, 2, K) of the log: sums of losses and numbers of examples by band."""
        return self.log[:, len(FIRST) :].unflatten(1, (2, BANDS))

    def record(self, step: TrainStep) -> None:
        """Note a step that ``train`` yielded; save if it is time, or a stop was asked.

        Raises:
            KeyboardInterrupt: after SIGINT; everything up to this step is saved.
            SystemExit: the same after SIGTERM, with code 143.
            OSError, CheckpointError, FloatingPointError: as ``training.save``.
        """
        self._unsaved.append(step)
        stop = self._is_stop_asked(step.step)
        waited = time.monotonic() - self._saved_at
        if stop or step.step % self.every_steps == 0 or waited > self.every_seconds:
            self.save()
        if stop:
            self.obey()

    def _is_stop_asked(self, step: int) -> bool:
        """Whether to stop; of several processes the first decides, for all of them.

        They meet only every ``CHECK_EVERY`` steps, since an answer waits for the GPU.
        """
        if processes() > 1:
            if step % CHECK_EVERY:
                return False
            told = agree(self.interruption.number or 0, self.state.failed.device)
            self.interruption.number = int(told) or None
        return self.interruption.number is not None

    def save(self) -> None:
        """Save now, in the mirror too; process 0 does it. Errors as ``record``."""
        new = [_row(step) for step in self._unsaved]
        self.log = torch.cat([self.log, self.log.new_tensor(new).reshape(-1, WIDTH)])
        self._unsaved.clear()
        if rank() == 0:
            training.save(self.root, self.state, keep=self.keep, log=self.log)
            self.write_losses()
            self._copy_to_mirror()
            self.mark.touch()
        self._saved_at = time.monotonic()

    def _copy_to_mirror(self) -> None:
        if self.mirror is None:
            return
        try:
            training.save(self.mirror, self.state, keep=self.keep, log=self.log)
        except (OSError, checkpoint.CheckpointError) as error:
            warnings.warn(
                f"Step {self.state.step} is saved in {self.root} but not in the mirror "
                f"{self.mirror}; training goes on. {error}",
                stacklevel=4,
            )

    def write_losses(self) -> None:
        """Write ``losses.csv`` anew, whole: the log, with the mean loss of each band.

        A band that no example of a step fell into is left empty.
        """
        head = ",".join([*FIRST, *(f"loss {name}" for name in band_names())])
        means = band_means(self.bands) if len(self.log) else self.log[:, :BANDS]
        table = torch.cat([self.log[:, : len(FIRST)], means], dim=1)
        text = "".join(f"{line}\n" for line in (head, *map(_line, table.tolist())))
        path = self.root / LOSSES
        with explain_disk_errors(path, len(text)), atomic_write(path) as file:
            file.write(text.encode())

    def obey(self) -> None:
        """Stop if that was asked, or return; errors as ``record``, which saves."""
        number = self.interruption.number
        if number is not None:
            words = f"Stopped after step {self.state.step}, saved in {self.root}."
            raise exception_of(number, f"{words} Run this again to go on.")


def _row(step: TrainStep) -> list[float]:
    numbers = (step.step, float(step.loss), float(step.grad_norm), step.lr)
    return [*numbers, *step.bands.flatten().tolist()]


def _line(numbers: list[float]) -> str:
    step, *rest = numbers
    return ",".join([f"{step:.0f}", *("" if x != x else repr(x) for x in rest)])


@contextmanager
def recoverable(
    state: TrainState,
    root: str | Path,
    *,
    mirror: str | Path | None = None,
    keep: int = 2,
    every_steps: int = 200,
    every_seconds: float = 120.0,
    must_resume: bool = False,
) -> Iterator[Run]:
    """Resume from ``root`` (or ``mirror``) and keep the run safe while the block lasts.

    A block that ends well saves once more; one that ends by an error does not, since
    the state may be of half a step. The start also removes what a killed run left
    half-written, and checks the room for ``keep + 1`` checkpoints.

    Args:
        state: from ``training.start``; changed in place.
        root: the run's folder, made if missing.
        mirror: a second folder, such as one on a network drive, that gets every
            checkpoint too. If it fails, a warning says so and training goes on.
        keep: checkpoints kept in each folder.
        every_steps: saves at its multiples, and after ``every_seconds`` without one.
        must_resume: a missing checkpoint is an error, not a start from nothing.

    Raises:
        FolderInUseError: another run is at work in ``root``.
        FileNotFoundError: ``must_resume``, and there is no checkpoint.
        CheckpointError, ValueError: as ``training.resume``.
        OSError: there is too little room; says how many MB are needed and free.
    """
    root, mirror = Path(root), Path(mirror) if mirror else None
    with run_lock(root) as mark, noted_signals() as noted:
        run = Run(state, root, mirror, keep, every_steps, every_seconds, noted, mark)
        found = _resume(run, must_resume)
        _make_ready(run, intact=found)
        yield run
        if run._unsaved:
            run.save()
        run.obey()


def _resume(run: Run, must: bool) -> Path | None:
    """Take over the newest checkpoint and its log; returns its folder, if any."""
    found = training.resume(run.root, run.state, mirror=run.mirror)
    if found is None and must:
        raise FileNotFoundError(
            f"There is no checkpoint under {run.root} to go on from. Check the folder, "
            "or leave out must_resume to start from nothing."
        )
    run.log = found.tensors.get(LOG, run.log) if found else run.log
    run.banner = _banner(run, found)
    return found.folder if found else None


def _banner(run: Run, found: checkpoint.Checkpoint | None) -> str:
    saves = f"every {run.every_steps} steps or {run.every_seconds:.0f} s"
    if found is None:
        return f"Nothing is saved in {run.root} yet: starting, with a save {saves}."
    step = run.state.step
    lost = f"{found.newest - step + run.every_steps - 1} steps"
    if found.newest == step:
        lost += f" or {run.every_seconds:.0f} s of work"
    ignored = f" Ignored: {' '.join(found.refused)}" if found.refused else ""
    return (
        f"Resumed after step {step} from {found.folder}; what came after it, at most "
        f"{lost}, is lost and done again.{ignored}"
    )


def _make_ready(run: Run, intact: Path | None) -> None:
    """Remove what a killed run left half-written, and check the room on the disk."""
    if rank() > 0:
        return
    checkpoint.prune(run.root, run.keep, intact=intact)
    for partial in run.root.glob(f".{LOSSES}-*"):
        partial.unlink()
    run.write_losses()
    size = checkpoint.size_of(run.state.tensors())
    held = len(list(run.root.glob(f"*/{checkpoint.MANIFEST}")))
    require_room(run.root, max(0, run.keep + 1 - held) * size)
