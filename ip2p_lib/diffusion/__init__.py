"""Latent diffusion, the ground the paper stands on (sections 3.2 and 3.2.1).

Read ``schedule`` (how noise is added), ``samplers`` (how it is removed), ``guidance``
(equations 2 and 3), ``stable_diffusion`` (the pretrained networks) and ``clip``;
``loading`` reads weights safely. Notebooks 04 and 06 teach them; LoRA is in 05.
"""

from ip2p_lib.diffusion.clip import load_clip
from ip2p_lib.diffusion.guidance import combine
from ip2p_lib.diffusion.samplers import sample
from ip2p_lib.diffusion.schedule import add_noise, predict_x0
from ip2p_lib.diffusion.stable_diffusion import load_stable_diffusion

__all__ = [
    "add_noise",
    "combine",
    "load_clip",
    "load_stable_diffusion",
    "predict_x0",
    "sample",
]
