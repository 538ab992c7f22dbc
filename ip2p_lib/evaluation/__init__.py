"""Measure edits and compare editors (section 4.1; notebook 08).

Read ``metrics`` (what is measured of one edit, and the curve of figure 8), then the
baselines: ``sdedit``, and ``imagic`` and ``text2live``, which train for every edit.
"""

from ip2p_lib.evaluation.metrics import Examples, measure, summarise, sweep

__all__ = ["Examples", "measure", "summarise", "sweep"]
