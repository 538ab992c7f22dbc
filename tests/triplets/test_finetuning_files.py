"""Training files of both formats say the same triplets."""

import json

import pytest

from ip2p_lib.config import DATA
from ip2p_lib.triplets.chat_format import EditReply
from ip2p_lib.triplets.finetuning_files import (
    FORMATS,
    from_chat_row,
    from_completion_row,
    read_tuning_file,
    to_chat_row,
    to_completion_row,
    write_tuning_file,
)
from ip2p_lib.triplets.record import Triplet, TripletError, read_jsonl

ROSE = Triplet("a sunflower on a beach", "make it a rose", "a rose on a beach")


@pytest.mark.parametrize("form", FORMATS)
def test_every_hand_written_triplet_survives_the_file(tmp_path, form):
    triplets = read_jsonl(DATA / "triplets" / "general.jsonl")
    path = write_tuning_file(tmp_path / "train.jsonl", triplets, form)
    assert read_tuning_file(path, form) == triplets


def test_the_papers_row_is_that_of_the_released_script():
    assert to_completion_row(ROSE) == {
        "prompt": "a sunflower on a beach\n##\n",
        "completion": "make it a rose\n%%\na rose on a beach\nEND",
    }


def test_a_chat_is_a_task_a_question_and_an_answer_in_the_form_asked_for():
    system, user, assistant = to_chat_row(ROSE)["messages"]
    roles = [message["role"] for message in (system, user, assistant)]
    assert roles == ["system", "user", "assistant"]
    assert json.loads(user["content"]) == {"caption": ROSE.caption}
    answer = EditReply.model_validate_json(assistant["content"])
    assert answer.instruction == ROSE.instruction
    assert answer.edited_caption == ROSE.edited_caption


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"messages": []},
        {"messages": [{"role": "user", "content": "hello"}] * 2},
        {"messages": [{"content": '{"caption": "a cat"}'}, {"content": "{}"}]},
        {"messages": "no"},
    ],
)
def test_what_is_no_conversation_about_a_caption_is_refused(row):
    with pytest.raises(TripletError):
        from_chat_row(row)


@pytest.mark.parametrize(
    "row",
    [{}, {"prompt": "a cat\n##\n"}, {"prompt": "a cat", "completion": "one part"}],
)
def test_what_is_no_completion_is_refused(row):
    with pytest.raises(TripletError):
        from_completion_row(row)


def test_errors_name_the_line_and_the_form(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(to_chat_row(ROSE)) + "\n{\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"train\.jsonl:2:"):
        read_tuning_file(path)
    with pytest.raises(ValueError, match="no form 'gpt'; choose from completion, chat"):
        write_tuning_file(path, [ROSE], "gpt")
    assert path.read_text().count("\n") == 2, "the file stayed as it was"
