"""Training of the editor (sections 3.2 and 3.2.1; notebooks 04 and 05).

Read ``surgery`` (eight input channels), ``latents`` (the training set) and ``train``
(the loss and the loop) first; then ``state``, ``ema`` and ``resume`` (what a run is,
and how it survives a stop), ``validation``, ``progress`` and ``model_card``.
``compiled`` is for a fast GPU; ``loss_weighting`` is an option.
"""

from ip2p_lib.training.resume import resumable_run
from ip2p_lib.training.state import TrainingOptions, TrainState
from ip2p_lib.training.surgery import widen_conv_in

__all__ = [
    "TrainState",
    "TrainingOptions",
    "resumable_run",
    "widen_conv_in",
]
