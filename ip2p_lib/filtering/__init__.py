"""Keep the pairs in which the edit happened (section 3.1.2, A.2, notebook 03).

Read ``clip_filter`` (the four scores and the thresholds), then ``calibration`` (what a
threshold keeps, and how to choose one). ``figures`` and ``panel`` are for notebooks.
"""

from ip2p_lib.filtering.clip_filter import (
    Scores,
    drop_reasons,
    keep_best,
    passes,
    score_generated,
    score_pairs,
)

__all__ = [
    "Scores",
    "drop_reasons",
    "keep_best",
    "passes",
    "score_generated",
    "score_pairs",
]
