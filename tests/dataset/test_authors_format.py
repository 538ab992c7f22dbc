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
from ip2p_lib.dataset.authors_format import METADATA
from ip2p_lib.dataset.pairs import encode_pair, from_files, to_files
from tests.support.pairs import fields_of, make_pair, psnr

PAIRS = [make_pair(i) for i in range(8)]


@pytest.fixture
def source(tmp_path):
    write_shards(PAIRS, tmp_path / "shards")
    return tmp_path / "shards"


@pytest.fixture
def exported(source, tmp_path):
    return export_folders(source, tmp_path / "out")


def test_the_files_are_those_of_the_released_scripts(exported):
    """As generate_img_dataset.py and prepare_dataset.py write them."""
    folders = [f"{i:07d}" for i in range(4)]
    assert sorted(p.name for p in exported.iterdir()) == [*folders, "seeds.json"]
    assert sorted(p.name for p in (exported / "0000002").iterdir()) == [
        *(f"{2**47 + i}_{k}.jpg" for i in (4, 5) for k in (0, 1)),
        "metadata.jsonl",
        "prompt.json",
    ]
    listing = [
        [f, [str(2**47 + 2 * i + k) for k in (0, 1)]] for i, f in enumerate(folders)
    ]
    assert json.loads((exported / "seeds.json").read_bytes()) == listing
    prompt = json.loads((exported / "0000002" / "prompt.json").read_bytes())
    texts = {"input": "一只猫 2, a cat", "edit": "make it 2", "output": "a dog 2"}
    assert prompt == texts
    lines = (exported / "0000002" / "metadata.jsonl").read_text().splitlines()
    released = {"seed": 2**47 + 5, "p2p_threshold": 0.1 + 5 / 100, "cfg_scale": 7.5}
    released |= {"clip_sim_0": 0.2, "clip_sim_1": 0.25}
    released |= {"clip_sim_dir": 0.1, "clip_sim_image": 0.75}
    assert released.items() <= json.loads(lines[1]).items()


def test_pairs_come_back_exactly_but_for_the_error_of_jpeg(tmp_path):
    """Worst of the sample's 512 images: 50.1 dB, an error of less than 1 in 255."""
    sample = DATA / "pairs" / "sample"
    exported = export_folders(sample, tmp_path / "x")
    back = {pair.key: pair for pair in read_folders(exported)}
    for pair in read_shards(sample):
        assert fields_of(back[pair.key]) == fields_of(pair)
        assert psnr(pair.before, back[pair.key].before) > 48
        assert psnr(pair.after, back[pair.key].after) > 48


def test_the_images_that_are_there_count(exported):
    """Of the released list, 10,434 folders are absent; without images, no pair."""
    (exported / "seeds.json").unlink()
    (exported / "0000009").mkdir()  # a triplet of which the filter kept nothing
    (exported / "0000009" / "prompt.json").write_text("{}")
    assert [p.key for p in read_folders(exported)] == [p.key for p in PAIRS]


def test_a_file_of_the_authors_has_only_their_keys(exported):
    """And their generator calls the caption "caption"."""
    path = exported / "0000000" / "prompt.json"
    texts = json.loads(path.read_bytes())
    path.write_text(json.dumps({"caption": texts.pop("input")} | texts))
    for path in exported.glob("*/metadata.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            for name in ("key", "steps", "language", "words"):
                del line[name]
        path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, lines[0]]))
    first = next(read_folders(exported))
    assert first.key == f"0000000-{PAIRS[0].seed}" and first.steps is None
    for name in ("caption", "seed", "p", "scores"):
        assert getattr(first, name) == getattr(PAIRS[0], name)


def test_a_broken_pair_is_named_and_the_others_are_used(exported):
    folder, seeds = exported / "0000001", [PAIRS[2].seed, PAIRS[3].seed]
    (folder / f"{seeds[0]}_1.jpg").unlink()
    Image.new("RGB", (8, 8)).save(folder / f"{seeds[1]}_0.jpg")
    with pytest.raises(DatasetError, match=rf"0000001: seed {seeds[0]}: There is no"):
        list(read_folders(exported))
    problems = []
    keys = [pair.key for pair in read_folders(exported, problems=problems)]
    assert keys == [pair.key for pair in (*PAIRS[:2], *PAIRS[4:])]
    assert [p.key for p in problems] == [f"seed {seed}" for seed in seeds]
    assert "differ in size" in problems[1].reason


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("prompt.json", '{"input": "a", "output": "b"}', "instruction is empty"),
        ("prompt.json", "[1]", "its prompt.json is no JSON"),
        ("metadata.jsonl", "\xff", "its metadata.jsonl is no JSON"),
    ],
)
def test_a_triplet_whose_texts_cannot_be_used_is_named(exported, name, text, reason):
    (exported / "0000003" / name).write_text(text, encoding="latin-1")
    problems = []
    assert len(list(read_folders(exported, problems=problems))) == 6
    assert [p.shard for p in problems] == ["0000003"] * 2
    assert all(reason in p.reason for p in problems)


def test_a_folder_of_another_kind_is_refused(tmp_path, source):
    with pytest.raises(FileNotFoundError, match="no folders with a prompt"):
        read_folders(source)


def test_any_seed_is_kept_and_pairs_without_one_or_captions_are_numbered(tmp_path):
    bare = {"caption": "", "edited_caption": "", "instruction": "a hat"}
    seeds = [-5, 0, None, 3, None]
    pairs = [make_pair(i, seed=seed, **bare) for i, seed in enumerate(seeds)]
    write_shards(pairs, tmp_path / "shards")
    out = export_folders(tmp_path / "shards", tmp_path / "out")
    prompt = json.loads((out / "0000000" / "prompt.json").read_bytes())
    assert prompt == {"edit": "a hat"}
    back = [(p.key, p.seed, p.caption) for p in read_folders(out)]
    numbered = enumerate([-5, 0, 2, 3, 4])  # by its place, where there was no seed
    assert back == [(f"{i:06d}", seed, "") for i, seed in numbered]


def test_one_seed_twice_in_a_triplet_is_refused(tmp_path):
    write_shards([make_pair(i, seed=5) for i in range(2)], tmp_path / "shards")
    with pytest.raises(ValueError, match="000001 repeats seed 5"):
        export_folders(tmp_path / "shards", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_png_and_jpeg_images_and_any_name_of_a_folder_are_read(exported):
    """Hidden files of a Mac are none of them."""
    for number, name in enumerate(["a cat.v2", "猫", "００００００２"]):
        folder = (exported / f"{number:07d}").rename(exported / name)
        (folder / METADATA).unlink()
        for path in [*folder.glob("*.jpg")]:
            Image.open(path).save(path.with_suffix((".png", ".jpeg", ".WEBP")[number]))
            path.rename(path.with_name(f"._{path.name}"))
    problems = []
    pairs = list(read_folders(exported, problems=problems))
    assert not problems and len({pair.key for pair in pairs}) == len(PAIRS)
    write_shards(pairs, exported.parent / "again")
    assert len(list(read_shards(exported.parent / "again"))) == len(PAIRS)


def test_an_image_that_cannot_be_read_or_is_in_no_folder_costs_only_itself(exported):
    broken = exported / "0000001" / f"{PAIRS[2].seed}_1.jpg"
    broken.write_bytes(b"no image")
    for side in (0, 1):
        Image.new("RGB", (8, 8)).save(exported / f"7_{side}.jpg")
    problems = []
    keys = [pair.key for pair in read_folders(exported, problems=problems)]
    assert keys == [pair.key for pair in PAIRS if pair is not PAIRS[2]]
    seed, *lost = problems
    assert (seed.shard, seed.key) == ("0000001", f"seed {PAIRS[2].seed}")
    assert broken.name in seed.reason
    assert [p.key for p in lost] == ["7_0.jpg", "7_1.jpg"]


def test_a_file_that_is_no_pair_is_a_problem_and_no_pair_at_all_an_error(exported):
    (exported / "0000001" / f"{PAIRS[2].seed}_0.bmp").write_bytes(b"")
    (exported / "0000001" / f"{PAIRS[2].seed}_0.png").write_bytes(b"")
    problems = []
    assert len(list(read_folders(exported, problems=problems))) == len(PAIRS)
    assert [problem.shard for problem in problems] == ["0000001"] * 2
    for path in exported.glob("*/*_[01].*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="no <seed>_0 images"):
        read_folders(exported)


@pytest.mark.parametrize("seed", ["../../outside", True, 1.5])
def test_a_seed_or_key_that_is_a_path_writes_nothing_outside(seed):
    """A shard is a file from anywhere: its record and names are checked on reading."""
    pair = encode_pair(PAIRS[0])
    files = to_files(pair)
    record = json.dumps(pair.record | {"seed": seed}).encode()
    with pytest.raises(ValueError, match="is no whole number"):
        from_files(pair.key, files | {f"{pair.key}.json": record})
    files = {name.replace(pair.key, "../x"): data for name, data in files.items()}
    with pytest.raises(ValueError, match="may hold letters"):
        from_files("../x", files)


def test_what_is_missing_or_there_twice_costs_itself_alone(exported):
    (exported / "0000001" / "prompt.json").unlink()
    path = exported / "0000002" / METADATA
    path.write_text(path.read_text().replace("000005", "000004"))
    path = exported / "0000003" / METADATA
    path.write_text(path.read_text().replace(f'"seed": {PAIRS[6].seed}', '"seed": "6"'))
    problems = []
    assert len(list(read_folders(exported, problems=problems))) == 3
    assert [p.shard for p in problems] == [f"000000{i}" for i in (1, 1, 2, 3, 3)]
    assert "occurs twice" in problems[2].reason and "whole seed" in problems[3].reason
