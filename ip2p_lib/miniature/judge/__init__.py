"""The judge: an attribute classifier that reads an image back into a scene.

Read ``readings`` (what it answers) and ``model`` (the network) first, then ``scores``
(of edits) and ``verdicts`` (on generated pairs, which ``calibration`` compares with
CLIP's filter).
"""

from ip2p_lib.miniature.judge.model import Judge, load_judge

__all__ = ["Judge", "load_judge"]
