"""Fine-tuning files hold the same triplets."""

import pytest

from ip2p_lib.config import DATA
from ip2p_lib.triplets.finetuning_files import (
    from_completion_row,
    read_finetuning_file,
    to_completion_row,
    write_finetuning_file,
)
from ip2p_lib.triplets.record import Triplet, TripletError, read_jsonl

ROSE = Triplet("a sunflower on a beach", "make it a rose", "a rose on a beach")


def test_every_hand_written_triplet_survives_the_file(tmp_path):
    triplets = read_jsonl(DATA / "triplets" / "general.jsonl")
    path = write_finetuning_file(tmp_path / "train.jsonl", triplets)
    assert read_finetuning_file(path) == triplets


def test_the_row_is_that_of_the_released_script():
    assert to_completion_row(ROSE) == {
        "prompt": "a sunflower on a beach\n##\n",
        "completion": "make it a rose\n%%\na rose on a beach\nEND",
    }


@pytest.mark.parametrize(
    "row",
    [[], {}, {"prompt": "a cat\n##\n"}, {"prompt": "a cat", "completion": "one part"}],
)
def test_what_is_no_completion_is_refused(row):
    with pytest.raises(TripletError):
        from_completion_row(row)


def test_a_damaged_line_is_named(tmp_path):
    path = write_finetuning_file(tmp_path / "train.jsonl", [ROSE])
    path.write_text(path.read_text() + "{\n")
    with pytest.raises(ValueError, match=r"train\.jsonl:2:"):
        read_finetuning_file(path)
