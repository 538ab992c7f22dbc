"""The judge: an attribute classifier that reads an image back into a scene.

Read ``readings`` first, which says what it answers, then ``model`` and ``verdicts``.
"""

from ip2p_lib.miniature.judge.model import Judge, Reading, load_judge

__all__ = ["Judge", "Reading", "load_judge"]
