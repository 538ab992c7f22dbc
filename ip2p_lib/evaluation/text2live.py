"""Text2LIVE: learn a layer to lay over one picture (arXiv 2204.02491).

A baseline that knows no diffusion. A small network is trained on a single picture I: it
gives a layer of colour C and opacity A, and the edit is A C + (1 - A) I. CLIP says what
it should show:

- composition: the edit is near its caption, and differs from I as the captions do
- structure: patches of the edit are alike where patches of I are
- sparsity: little is covered, and what is covered is covered wholly

So it can add and repaint, but what it cannot hide it cannot move. The paper's fourth
term shows CLIP the layer over a green screen, beside a caption that says so; the
miniature's CLIP has never heard of green screens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor, nn

from ip2p_lib.filtering.clip_filter import ClipScorer
from ip2p_lib.images import load, to_pil, to_tensor
from ip2p_lib.rng import key, normal, uniform


class LayerNet(nn.Module):
    """Colour and opacity of a layer from a picture: three scales with skips."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.fine = _block(3, width)
        self.middle = _block(width, 2 * width)
        self.coarse = _block(2 * width, 2 * width)
        self.up_middle = _block(4 * width, 2 * width)
        self.up_fine = _block(3 * width, width)
        self.layer = nn.Conv2d(width, 4, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) in [-1, 1] -> colour alike, opacity (B, 1, H, W) in [0, 1]."""
        fine = self.fine(image)
        middle = self.middle(F.avg_pool2d(fine, 2))
        coarse = self.coarse(F.avg_pool2d(middle, 2))
        middle = self.up_middle(torch.cat([_doubled(coarse), middle], 1))
        fine = self.up_fine(torch.cat([_doubled(middle), fine], 1))
        colour, opacity = self.layer(fine).split([3, 1], 1)
        return colour.tanh(), opacity.sigmoid()


def _block(before: int, after: int) -> nn.Module:
    norm = nn.GroupNorm(8, after)
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), norm, nn.SiLU())


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear")


@dataclass(frozen=True)
class LayerTraining:
    """How the layer is trained, and what each term of the loss counts."""

    steps: int = 200
    learning_rate: float = 4e-3
    crops: int = 4  # of the picture at once, the same of the edit
    structure: float = 0.5
    sparsity: float = 0.1


def text2live(
    clip: ClipScorer,
    image: Image,
    caption: str,
    edited_caption: str,
    *,
    training: LayerTraining = LayerTraining(),
    seed: int = 0,
) -> Image:
    """Edit one picture by a layer that is trained for it.

    Args:
        clip: in float32; gradients pass through it.
        image: its sides multiples of 4; CLIP sees the middle square.
        caption: what it shows.
        edited_caption: what the edited picture shows.
        training: the schedule and the weights of the loss.
        seed: of the network and of the crops.

    Raises:
        ValueError: the picture's sides are no multiples of 4, or CLIP is in half
            precision.
    """
    picture = _checked(clip, image)
    net = _drawn(seed).to(clip.device)
    wanted = clip.embed_texts([caption, edited_caption])
    optimizer = torch.optim.Adam(net.parameters(), training.learning_rate)
    for step in range(training.steps):
        colour, opacity = net(picture)
        edit = composed(picture, colour, opacity)
        both = _crops(torch.cat([picture, edit]), training.crops, seed, step)
        loss = clip_loss(clip, both, wanted, training.structure)
        loss = loss + training.sparsity * sparsity(opacity)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return to_pil(composed(picture, *net(picture)))[0]


def _checked(clip: ClipScorer, image: Image) -> Tensor:
    """(1, 3, H, W) on CLIP's device, or ValueError."""
    if clip.model.dtype != torch.float32:
        raise ValueError(
            f"Gradients need CLIP in float32, not {clip.model.dtype}: load it by "
            "filtering.load_clip(source, dtype=torch.float32)."
        )
    picture = to_tensor([load(image)]).to(clip.device)
    if any(side % 4 for side in picture.shape[-2:]):
        raise ValueError(
            f"Text2LIVE halves a picture twice, and {tuple(picture.shape[-2:])} cannot "
            "be halved so. Resize it to sides that are multiples of 4."
        )
    return picture


def _drawn(seed: int) -> LayerNet:
    """A network whose weights are a function of the seed."""
    with torch.random.fork_rng(devices=[]):  # torch draws weights that are not used
        net = LayerNet()
    for name, weight in net.named_parameters():
        if weight.ndim > 1:
            ids, shape = torch.arange(len(weight)), tuple(weight.shape[1:])
            start = normal(key("text2live", seed, name), ids, shape)
            weight.data.copy_(start / math.prod(shape) ** 0.5)
        elif name.endswith("bias"):
            weight.data.zero_()
    return net


def composed(picture: Tensor, colour: Tensor, opacity: Tensor) -> Tensor:
    """Lay a layer over a picture."""
    return opacity * colour + (1 - opacity) * picture


def sparsity(opacity: Tensor) -> Tensor:
    """Approximate L1 and L0 norms of the opacity (the paper's regularisation)."""
    return (opacity + 2 * torch.sigmoid(5 * opacity) - 1).mean()


def clip_loss(
    clip: ClipScorer, both: Tensor, wanted: Tensor, structure: float
) -> Tensor:
    """Composition and structure of crops: (2 K, 3, h, w), the picture's, the edit's.

    Args:
        clip: gradients pass through it.
        both: crop k of the edit is crop K + k.
        wanted: (2, D) embeddings of the caption and of the edited one.
        structure: what its term counts.
    """
    seen = clip.model.vision_model(pixel_values=clip.prepare(both))
    before, after = F.normalize(
        clip.model.visual_projection(seen.pooler_output), dim=-1
    ).chunk(2)
    far = 1 - F.cosine_similarity(after, wanted[1:])
    astray = 1 - F.cosine_similarity(after - before, wanted[1:] - wanted[:1])
    patches = F.normalize(seen.last_hidden_state[:, 1:], dim=-1)
    alike = patches @ patches.mT
    bent = (alike[len(before) :] - alike[: len(before)]).square().mean((1, 2))
    return (far + astray + structure * bent).mean()


def _crops(both: Tensor, n: int, seed: int, step: int) -> Tensor:
    """n random crops of the first picture, then the same of the second."""
    ids = torch.arange(n, device=both.device)
    share, x, y = uniform(key("text2live", seed, step), ids, (3,)).unbind(1)
    share = 0.8 + 0.2 * share
    rows = torch.zeros(n, 2, 3, device=both.device)
    rows[:, 0, 0] = rows[:, 1, 1] = share
    rows[:, 0, 2], rows[:, 1, 2] = (1 - share) * (2 * x - 1), (1 - share) * (2 * y - 1)
    grid = F.affine_grid(rows, [n, 3, *both.shape[-2:]], align_corners=False)
    spread = both.repeat_interleave(n, 0)
    return F.grid_sample(spread, grid.repeat(2, 1, 1, 1), align_corners=False)
