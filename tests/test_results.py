"""Results carry their provenance, and are written whole or not at all."""

import json
import math

import pytest
import torch

from ip2p_lib.results import write_results


def test_results_say_where_they_come_from(tmp_path):
    path = write_results(
        tmp_path / "new" / "curve.json",
        [{"method": "SDEdit", "l1_source": 0.25}],
        seed=3,
        seconds=1.5,
        text_scale=7.5,
    )
    result = json.loads(path.read_text())
    assert result["rows"] == [{"method": "SDEdit", "l1_source": 0.25}]
    assert (result["seed"], result["seconds"], result["text_scale"]) == (3, 1.5, 7.5)
    assert result["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert result["commit"] and result["device"] and result["date"].endswith("+00:00")


def test_a_table_with_a_hole_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_results(tmp_path / "a.json", [{"l1": math.nan}], seed=0, seconds=0.0)
    assert list(tmp_path.iterdir()) == []
