"""A few training steps, for one process or several: see test_distributed."""

import sys
from pathlib import Path

import psutil
import torch
from safetensors.torch import save_file
from torch import nn

from ip2p_lib import distributed
from ip2p_lib.config import Training
from ip2p_lib.diffusion.schedule import Schedule
from ip2p_lib.distributed import local_shard
from ip2p_lib.rng import key, normal
from ip2p_lib.training import train as training
from ip2p_lib.training.latents import Latents, sample_ids_of_step
from ip2p_lib.training.state import TrainState
from jobs.miniature.loop import Budget, fit

SETTINGS = Training(steps=5, batch_size=5, learning_rate=1e-2, drop=0.05)


def draw(name, n, *shape):
    return normal(key(name), torch.arange(n), shape)


LATENTS = Latents(
    *(draw(name, 7, 2, 4, 4, 4) for name in "abc"),
    torch.arange(7) % 3,
    draw("text", 3, 5, 6),
    draw("null", 1, 5, 6),
    0.5,
)


class Small(nn.Module):
    """Called as a U-Net is; its weights start the same in every process."""

    def __init__(self):
        super().__init__()
        self.image, self.text = nn.Conv2d(8, 4, 3, padding=1), nn.Linear(6, 4)
        for name, weight in self.named_parameters():
            start = draw(name, len(weight), *weight.shape[1:])
            weight.data = start.reshape(weight.shape) / 10

    def forward(self, sample, t, encoder_hidden_states, return_dict):
        told = self.text(encoder_hidden_states.mean(1))
        return (self.image(sample) + told[..., None, None],)


def edit_training():
    """Losses and final weights of ``training.train``."""
    unet, schedule = Small(), Schedule.scaled_linear()
    state = TrainState.create(unet, SETTINGS)
    steps = list(training.train(state, LATENTS, schedule, SETTINGS, run_seed=0))
    losses, bins = (
        torch.stack([getattr(s, n) for s in steps]) for n in ("loss", "bins")
    )
    return {"losses": losses, "bins": bins, **dict(unet.state_dict())}


def samples_and_draws():
    """This process's sample ids of three steps, and their noise."""
    shards = [local_shard(sample_ids_of_step(0, step, 5, 7)) for step in range(3)]
    sample_ids = torch.cat(shards)
    noise = normal(key(0, "noise", 0), sample_ids, (4, 4, 4))
    return {"own sample_ids": sample_ids, "own noise": noise}


def pretraining():
    """Final weights of ``loop.fit`` after one step; equal batches by id."""
    layer = nn.Linear(4, 1)
    with torch.no_grad():
        layer.weight.fill_(distributed.rank() + 1.0)  # process 0's weights are to win
        layer.bias.fill_(0.0)

    def loss_of(step):
        x = normal(key("x", step), distributed.local_shard(torch.arange(8)), (4,))
        return layer(x).square().mean()

    # Were process 1's longer budget its own, it would wait for process 0 for ever.
    budget = Budget(0.05 + 0.2 * distributed.rank(), 0.1, warmup=1)
    steps = fit(layer, loss_of, budget)
    first = next(steps)
    found = {"fitted": layer.weight.detach().clone(), "loss": torch.tensor(first.loss)}
    for _ in steps:
        pass
    return found


def work(out):
    """What every process does, however it was started."""
    found = {**edit_training(), **pretraining(), **samples_and_draws()}
    rank = distributed.rank()
    number = distributed.broadcast_scalar(rank + 7.0, torch.device("cpu"))
    result = {**found, "agreed": torch.tensor(number)}
    save_file(result, out / f"rank-{rank}.safetensors")


if __name__ == "__main__":
    out = Path(sys.argv[1])
    if "as-from-a-notebook" in sys.argv:
        distributed.launch(work, out, processes=2)
    else:
        distributed.init()
        number = distributed.rank()
        work(out)
        distributed.shutdown()
        (out / f"threads-{number}").write_text(str(psutil.Process().num_threads()))
