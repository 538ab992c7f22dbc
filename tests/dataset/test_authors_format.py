"""The authors' layout holds our texts and numbers, and our images nearly."""

import json

import pytest
from PIL import Image

from ip2p_lib.config import DATA
from ip2p_lib.dataset import (
    DatasetError,
    export_folders,
    read_folders,
    read_shards,
    write_shards,
)
from tests.support.pairs import fields_of, make_pair, psnr

PAIRS = [make_pair(i) for i in range(8)]


@pytest.fixture
def source(tmp_path):
    write_shards(PAIRS, tmp_path / "shards")
    return tmp_path / "shards"


@pytest.fixture
def exported(source, tmp_path):
    return export_folders(source, tmp_path / "out")


def rewrite(path, change):
    value = json.loads(path.read_bytes())
    path.write_text(json.dumps(change(value)))


def test_a_triplet_is_a_folder_and_a_pair_two_images(exported):
    assert sorted(p.name for p in exported.iterdir()) == [
        *(f"{i:07d}" for i in range(4)),
        "seeds.json",
    ]
    assert sorted(p.name for p in (exported / "0000001").iterdir()) == [
        *(f"{2**47 + i}_{k}.jpg" for i in (2, 3) for k in (0, 1)),
        "metadata.jsonl",
        "prompt.json",
    ]


def test_the_files_say_what_the_released_ones_say(exported):
    prompt = json.loads((exported / "0000002" / "prompt.json").read_bytes())
    texts = {"input": "一只猫 2, a cat", "edit": "make it 2", "output": "a dog 2"}
    assert prompt == texts
    lines = (exported / "0000002" / "metadata.jsonl").read_text().splitlines()
    released = {"seed": 2**47 + 5, "p2p_threshold": 0.1 + 5 / 100, "cfg_scale": 7.5}
    released |= {"clip_sim_0": 0.2, "clip_sim_1": 0.25}
    released |= {"clip_sim_dir": 0.1, "clip_sim_image": 0.75}
    assert released.items() <= json.loads(lines[1]).items()


def test_seeds_are_listed_as_the_released_script_lists_them(exported):
    """As prepare_dataset.py: names of files, as text, sorted."""
    listing = [
        [folder.name, sorted(p.name.split("_")[0] for p in folder.glob("*_0.jpg"))]
        for folder in sorted(exported.glob("0*"))
    ]
    assert json.loads((exported / "seeds.json").read_bytes()) == listing


def test_an_item_is_found_as_the_released_loader_finds_it(exported):
    """As edit_dataset.py: seeds.json, then prompt.json, then two images."""
    found = set()
    for name, seeds in json.loads((exported / "seeds.json").read_bytes()):
        prompt = json.loads((exported / name / "prompt.json").read_bytes())["edit"]
        for seed in seeds:
            with Image.open(exported / name / f"{seed}_1.jpg") as image:
                found.add((prompt, int(seed), image.mode, image.size))
    assert found == {(p.instruction, p.seed, "RGB", (16, 16)) for p in PAIRS}


def test_texts_and_numbers_come_back_exactly(exported):
    for pair, back in zip(PAIRS, read_folders(exported), strict=True):
        assert fields_of(back) == fields_of(pair)


def test_images_come_back_within_the_error_of_jpeg(tmp_path):
    """Worst of the sample's 512 images: 50.1 dB, an error of less than 1 in 255."""
    sample = DATA / "pairs" / "sample"
    back = {
        pair.key: pair for pair in read_folders(export_folders(sample, tmp_path / "x"))
    }
    for pair in read_shards(sample):
        assert psnr(pair.before, back[pair.key].before) > 48
        assert psnr(pair.after, back[pair.key].after) > 48


def test_the_released_generator_calls_the_caption_caption(exported):
    path = exported / "0000000" / "prompt.json"
    rewrite(path, lambda p: {"caption": p["input"], **p, "input": None})
    rewrite(path, lambda p: {k: v for k, v in p.items() if v})
    assert next(read_folders(exported)).caption == PAIRS[0].caption


def test_the_images_that_are_there_count(exported):
    """Of the released list, 10,434 folders are absent; without images, no pair."""
    rewrite(exported / "seeds.json", lambda seeds: [*seeds, ["0000042", ["7", "8"]]])
    (exported / "0000009").mkdir()  # a triplet of which the filter kept nothing
    (exported / "0000009" / "prompt.json").write_text("{}")
    assert [p.key for p in read_folders(exported)] == [p.key for p in PAIRS]
    (exported / "seeds.json").unlink()
    assert [p.key for p in read_folders(exported)] == [p.key for p in PAIRS]


def test_a_file_of_the_authors_has_only_their_keys(exported):
    for path in exported.glob("*/metadata.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        ours = ("key", "steps", "language", "words")
        kept = [{k: v for k, v in line.items() if k not in ours} for line in lines]
        path.write_text("".join(json.dumps(line) + "\n" for line in [*kept, kept[0]]))
    first = next(read_folders(exported))
    assert first.key == f"0000000-{PAIRS[0].seed}" and first.steps is None
    assert (first.seed, first.p, first.scores) == (
        PAIRS[0].seed,
        PAIRS[0].p,
        PAIRS[0].scores,
    )


FAULTS = {
    "There is no image": lambda folder, seed: (folder / f"{seed}_1.jpg").unlink(),
    "cannot be read": lambda folder, seed: (folder / f"{seed}_0.jpg").write_bytes(
        (folder / f"{seed}_0.jpg").read_bytes()[:-200]
    ),
    "not an image": lambda folder, seed: (folder / f"{seed}_0.jpg").write_text("?"),
    "differ in size": lambda folder, seed: Image.new("RGB", (8, 8)).save(
        folder / f"{seed}_0.jpg"
    ),
}


@pytest.mark.parametrize("reason", FAULTS)
def test_a_broken_pair_is_named_and_the_others_are_used(exported, reason):
    FAULTS[reason](exported / "0000001", PAIRS[2].seed)
    with pytest.raises(
        DatasetError, match=rf"0000001: seed {PAIRS[2].seed}: .*{reason}"
    ):
        list(read_folders(exported))
    problems = []
    keys = [pair.key for pair in read_folders(exported, problems=problems)]
    assert keys == [pair.key for pair in PAIRS if pair is not PAIRS[2]]
    assert len(problems) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"input": " "}, "give both captions"),
        ({"output": ""}, "give both captions"),
        ({"edit": ""}, "its instruction is empty"),
        ({"edit": None}, "is no text"),
    ],
)
def test_a_triplet_with_an_empty_text_is_named(exported, change, reason):
    rewrite(exported / "0000003" / "prompt.json", lambda prompt: prompt | change)
    problems = []
    assert len(list(read_folders(exported, problems=problems))) == 6
    assert [p.shard for p in problems] == ["0000003"] * 2
    assert all(reason in p.reason for p in problems)


@pytest.mark.parametrize("name", ["prompt.json", "metadata.jsonl"])
@pytest.mark.parametrize("text", ["{", "7", "[1]", "\xff"])
def test_a_file_that_is_no_json_is_named(exported, name, text):
    (exported / "0000003" / name).write_text(text, encoding="latin-1")
    problems = []
    assert len(list(read_folders(exported, problems=problems))) == 6
    assert [p.shard for p in problems] == ["0000003"] * 2
    assert all(f"its {name} is no JSON" in p.reason for p in problems)


def test_a_folder_of_another_kind_is_refused(tmp_path, exported):
    with pytest.raises(FileNotFoundError, match="no folders with a prompt"):
        read_folders(tmp_path / "shards")


def test_pairs_that_were_not_rendered_are_numbered_and_need_no_captions(tmp_path):
    bare = {"caption": "", "edited_caption": "", "seed": None, "instruction": "a hat"}
    write_shards([make_pair(i, **bare) for i in range(3)], tmp_path / "shards")
    out = export_folders(tmp_path / "shards", tmp_path / "out")
    assert json.loads((out / "0000000" / "prompt.json").read_bytes()) == {
        "edit": "a hat"
    }
    back = list(read_folders(out))
    assert [(p.key, p.seed, p.caption) for p in back] == [
        (f"{i:06d}", i, "") for i in range(3)
    ]


def test_one_seed_twice_in_a_triplet_is_refused(tmp_path):
    write_shards([make_pair(i, seed=5) for i in range(2)], tmp_path / "shards")
    with pytest.raises(ValueError, match="000001 repeats seed 5"):
        export_folders(tmp_path / "shards", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]
