"""A tiny editor whose edits depend on the input, as if it had been trained."""

from dataclasses import replace

import numpy as np
import torch

from ip2p_lib.config import Editing
from ip2p_lib.editing.editor import Editor
from ip2p_lib.training.surgery import widen_conv_in

DEFAULTS = Editing(steps=4, text_scale=7.5, image_scale=1.5)


def new_editor(backbone):
    """On a copy of a text-to-image U-Net, whose new weights are not zero."""
    unet = widen_conv_in(backbone.unet).eval()
    new = unet.conv_in.weight.data[:, 4:]
    new.copy_(torch.randn(new.shape, generator=torch.Generator().manual_seed(0)))
    return Editor(replace(backbone, unet=unet), DEFAULTS, 64)


def distance(a, b):
    return np.abs(np.asarray(a, float) - np.asarray(b, float)).mean()
