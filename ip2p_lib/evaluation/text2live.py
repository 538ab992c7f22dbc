"""Text2LIVE: train a layer to lay over one image (arXiv 2204.02491; figure 9).

A baseline without diffusion. A small network is trained on a single image I: it outputs
a layer of colour C and opacity A, and the edit is A C + (1 - A) I. The loss has three
terms, the first two computed by CLIP:

- composition: the edit is near its caption, and differs from I as the captions do
- structure: patches of the edit are as similar to each other as those of I are
- sparsity: little of the image is covered, and that fully

The paper's fourth term, of the layer over a green screen, is left out: the miniature's
CLIP was trained on no green screens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor, nn

from ip2p_lib.diffusion.clip import ClipScorer
from ip2p_lib.images import load, to_pil, to_tensor
from ip2p_lib.rng import key, normal, uniform


class LayerNet(nn.Module):
    """Colour and opacity of a layer from an image: three scales with skips."""

    def __init__(self) -> None:
        super().__init__()
        width = 32
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
        middle = self.up_middle(torch.cat([_upsample(coarse), middle], 1))
        fine = self.up_fine(torch.cat([_upsample(middle), fine], 1))
        colour, opacity = self.layer(fine).split([3, 1], 1)
        return colour.tanh(), opacity.sigmoid()


def _block(channels_in: int, channels_out: int) -> nn.Module:
    conv = nn.Conv2d(channels_in, channels_out, 3, padding=1)
    return nn.Sequential(conv, nn.GroupNorm(8, channels_out), nn.SiLU())


def _upsample(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear")


@dataclass(frozen=True)
class LayerTraining:
    """How the layer is trained, and the weights of the terms of the loss."""

    steps: int = 200
    learning_rate: float = 4e-3
    crops: int = 4  # of the image at once, the same of the edit
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
    """Edit one image by a layer that is trained for it.

    CLIP, through which gradients pass, is float32, and sees the middle square of the
    image, whose sides are multiples of 4; ValueError otherwise. ``seed`` is that of the
    network and of the crops.
    """
    if clip.model.dtype != torch.float32:
        raise ValueError(f"Gradients need CLIP in float32, not {clip.model.dtype}.")
    if any(side % 4 for side in image.size):
        raise ValueError(f"The sides {image.size} must be multiples of 4: resize it.")
    before = to_tensor([load(image)]).to(clip.device)
    net = _initial_network(seed).to(clip.device)
    texts = clip.embed_texts([caption, edited_caption])
    optimizer = torch.optim.Adam(net.parameters(), training.learning_rate)
    for step in range(training.steps):
        colour, opacity = net(before)
        after = composite(before, colour, opacity)
        crops = random_crops(torch.cat([before, after]), training.crops, seed, step)
        loss = layer_loss(clip, crops, texts, training.structure)
        loss = loss + training.sparsity * sparsity(opacity)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return to_pil(composite(before, *net(before)))[0]


def _initial_network(seed: int) -> LayerNet:
    """A network whose weights are a function of the seed."""
    with torch.random.fork_rng(devices=[]):  # torch draws weights that are not used
        net = LayerNet()
    for name, weight in net.named_parameters():
        if weight.ndim > 1:
            ids, shape = torch.arange(len(weight)), tuple(weight.shape[1:])
            values = normal(key("text2live", seed, name), ids, shape)
            weight.data.copy_(values / math.prod(shape) ** 0.5)
        elif name.endswith("bias"):
            weight.data.zero_()
    return net


def composite(image: Tensor, colour: Tensor, opacity: Tensor) -> Tensor:
    """Lay a layer over an image."""
    return opacity * colour + (1 - opacity) * image


def sparsity(opacity: Tensor) -> Tensor:
    """Approximate L1 and L0 norms of the opacity (the paper's regularisation)."""
    return (opacity + 2 * torch.sigmoid(5 * opacity) - 1).mean()


def layer_loss(
    clip: ClipScorer, crops: Tensor, texts: Tensor, structure: float
) -> Tensor:
    """Composition term of the loss, and ``structure`` times the structure term.

    ``crops`` (2 K, 3, h, w) are K of the image, then the same K of the edit; ``texts``
    (2, D) embeddings of the caption and of the edited one.
    """
    output = clip.model.vision_model(pixel_values=clip.preprocess(crops))
    embeddings = clip.model.visual_projection(output.pooler_output)
    before, after = F.normalize(embeddings, dim=-1).chunk(2)
    to_caption = 1 - F.cosine_similarity(after, texts[1:])
    direction = 1 - F.cosine_similarity(after - before, texts[1:] - texts[:1])
    patches = F.normalize(output.last_hidden_state[:, 1:], dim=-1)
    self_similarity = (patches @ patches.mT).chunk(2)
    change = (self_similarity[1] - self_similarity[0]).square().mean((1, 2))
    return (to_caption + direction + structure * change).mean()


def random_crops(pair: Tensor, n: int, seed: int, step: int) -> Tensor:
    """Crop n times 80 to 100 % of both sides, resized to (2 n, 3, H, W).

    Those of the first image come first, then the same of the second.
    """
    height, width = pair.shape[-2:]
    u = uniform(key("text2live", seed, step), torch.arange(n), (3,))
    crops = []
    for share, y, x in u.tolist():
        h, w = (round((0.8 + 0.2 * share) * side) for side in (height, width))
        top, left = round(y * (height - h)), round(x * (width - w))
        crop = pair[..., top : top + h, left : left + w]
        crops.append(F.interpolate(crop, (height, width), mode="bilinear"))
    return torch.stack(crops, 1).flatten(0, 1)
