"""Train the miniature on from its shipped networks, on all GPUs, up to a deadline.

    python -m jobs.miniature.run --seconds 1600 --out data --work runs/miniature

The U-Net goes on learning while a new language model, if asked for, learns beside it
and writes; the U-Net renders pairs for the triplets in ``--work``, the editor learns
from those that pass the filter, and all are measured. Every stage is a command of
``ip2p_lib.miniature`` and leaves a log in ``--work``; compilation runs beside the
stages before it. A stage that fails ends the job, and what the earlier ones saved
stays. A run that was cut off goes on in the same ``--work``; a new run takes a new one.
Where a machine is lent for minutes only, ``--stages`` does the work in sittings: carry
``models`` in ``--out`` and ``triplets.jsonl`` in ``--work`` from one to the next.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ip2p_lib.config import DATA

# When a stage ends, as a share of the whole time.
UNET_ENDS, EDITOR_ENDS = 0.55, 0.95
_LOOK = 0.2  # seconds between looks at what runs


@dataclass
class Job:
    """The processes of one run and where they write."""

    out: Path
    work: Path
    gpus: int
    seconds: float
    began: float = field(default_factory=time.time)

    def say(self, text: str) -> None:
        """Print a line with the time since the start."""
        print(f"[{time.time() - self.began:.0f} s] {text}", flush=True)

    def until(self, share: float) -> list[str]:
        """The argument that gives a stage its deadline."""
        return ["--deadline", str(self.began + share * self.seconds)]

    def start(
        self, log: str, module: str, *arguments: str, gpu: int | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a module: on one GPU, or as one process on each of them."""
        launcher = ["-m", "torch.distributed.run", "--standalone"]
        launcher += [f"--nproc_per_node={max(self.gpus, 1)}"]
        alone = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)}
        command = [sys.executable, *(launcher if gpu is None else [])]
        command += ["-m", f"ip2p_lib.miniature.{module}", *arguments]
        with (self.work / f"{log}.log").open("wb") as file:
            return subprocess.Popen(
                command, stdout=file, stderr=file, env={**os.environ, **alone}
            )

    def finish(
        self,
        name: str,
        *running: subprocess.Popen[bytes],
        beside: Sequence[subprocess.Popen[bytes]] = (),
    ) -> None:
        """Wait for the processes of a stage; if one fails, stop all.

        Args:
            name: what they do.
            running: to wait for.
            beside: go on meanwhile and afterwards, and work for nobody if it fails.

        Raises:
            SystemExit: one failed.
        """
        every = [*running, *beside]
        while any(p.poll() is None for p in running) and not any(
            p.poll() for p in every
        ):
            time.sleep(_LOOK)
        codes = [process.poll() for process in every]
        self.say(f"{name} ended")
        if any(codes):
            for process in every:
                process.terminate()
            raise SystemExit(f"{name} failed with {codes}: see the logs in {self.work}")


def write_triplets(
    job: Job, options: argparse.Namespace, unet: subprocess.Popen[bytes]
) -> None:
    """New triplets if ``--work`` has none, by a language model trained anew or not.

    Args:
        job: where they are written.
        options: of the command line.
        unet: learns beside it.
    """
    where, last = ["--out", str(job.out), "--work", str(job.work)], max(job.gpus - 1, 0)
    if options.language_seconds:
        stages = ["grammar", "written", "--seconds", str(options.language_seconds)]
        stages += ["--scenes", str(2 * options.scenes)]
        stages += ["--samples", str(options.samples)]
        stages += ["--out", str(job.out / "models" / "miniature-lm")]
        stages += ["--work", str(job.work / "language")]
        stages += ["--results", str(job.out / "results")]
        learning = job.start("language", "pretrain_language", *stages, gpu=last)
        job.finish("language", learning, beside=[unet])
    if not (job.work / "triplets.jsonl").is_file():
        many = ["--batch", "1024", "--captions", str(options.captions)]
        writing = job.start("write", "make_pairs", "write", *where, *many, gpu=last)
        job.finish("write", writing, beside=[unet])


def train_unet(job: Job, options: argparse.Namespace) -> None:
    """The U-Net, from the weights in ``--out``; triplets are written meanwhile."""
    arguments = ["unet", "--warm", *job.until(UNET_ENDS)]
    arguments += ["--out", str(job.out / "models"), "--work", str(job.work / "state")]
    arguments += ["--batch", str(options.unet_batch * max(job.gpus, 1))]
    arguments += ["--scenes", str(options.scenes)]
    learning = job.start("unet", "pretrain", *arguments)
    write_triplets(job, options, learning)
    job.finish("unet", learning)


def make_editor(job: Job, options: argparse.Namespace) -> None:
    """Pairs on every GPU; the editor compiles meanwhile, then trains on them."""
    parts, where = max(job.gpus, 1), ["--out", str(job.out), "--work", str(job.work)]
    for old in job.work.glob("part-*"):
        shutil.rmtree(old)  # or the editor would not wait for the new ones
    how = ["--batch", str(options.editor_batch * parts), "--parts", str(parts)]
    how += ["--since", str(options.since)] if options.since else []
    editor = job.start(
        "editor", "make_editor", "train", *where, *how, *job.until(EDITOR_ENDS)
    )
    seconds = ["--seconds", str(options.render_seconds)]
    rendering = [
        job.start(
            f"pairs-{part}",
            "make_pairs",
            *("render", "--part", f"{part}/{parts}", *seconds, *where),
            gpu=part,
        )
        for part in range(parts)
    ]
    job.finish("pairs", *rendering, beside=[editor])  # which waits for their pairs
    job.finish("editor", editor)


def measure(job: Job, options: argparse.Namespace) -> None:
    """The U-Net on one GPU, the editor on the last."""
    results, samples = str(job.out / "results"), str(options.samples)
    unet = ["unet", "--measure", "--out", str(job.out / "models")]
    unet += ["--results", results, "--samples", str(2 * options.samples)]
    scales = ["--text-scales", "2", "3", "4.5", "--image-scales", "1.3", "1.8"]
    editor = ["measure", "--out", str(job.out), "--samples", samples, *scales]
    running = [
        job.start("measure-unet", "pretrain", *unet, gpu=0),
        job.start("measure-editor", "make_editor", *editor, gpu=max(job.gpus - 1, 0)),
    ]
    job.finish("measure", *running)


STAGES = {"unet": train_unet, "editor": make_editor, "measure": measure}


def main() -> None:
    """Run the stages in order."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--out", type=Path, default=DATA)
    parser.add_argument("--work", type=Path, default=Path("runs/miniature"))
    parser.add_argument("--seconds", type=float, default=1600)
    parser.add_argument("--render-seconds", type=float, default=190)
    parser.add_argument("--scenes", type=int, default=200_000)
    parser.add_argument(
        "--language-seconds", type=float, default=0, help="0 keeps the language model"
    )
    parser.add_argument("--captions", type=int, default=80_000, help="to write for")
    parser.add_argument("--unet-batch", type=int, default=2048, help="on each GPU")
    parser.add_argument("--editor-batch", type=int, default=1536, help="on each GPU")
    parser.add_argument(
        "--since", type=Path, help="go on from the editor that began as this U-Net"
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=512,
        help="held-out scenes: edited as many, drawn from words twice",
    )
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    gpus = torch.cuda.device_count()
    job = Job(options.out, options.work, gpus, options.seconds)
    for name, stage in STAGES.items():
        if name in options.stages:
            stage(job, options)
    job.say("done")


if __name__ == "__main__":
    main()
