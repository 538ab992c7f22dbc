"""--pairs takes every kind of pairs by looking, and says what it cannot take."""

from shutil import copytree

import pytest
from PIL import Image
from pyarrow import Table
from pyarrow.parquet import write_table

from ip2p_lib.dataset import export_folders, export_parquet, read_shards, write_shards
from jobs.pairs import fingerprint, import_pairs
from jobs.train import main

KINDS = ("shards", "folders", "parquet", "file", "table")


def as_kind(kind, pairs, folder):
    """The same twelve pairs in another form."""
    if kind == "shards":
        return pairs
    if kind == "folders":
        return export_folders(pairs, folder / "folders")
    if kind in ("parquet", "file"):
        out = export_parquet(pairs, folder / "parquet")
        return out if kind == "parquet" else next(out.glob("data/*.parquet"))
    lines = ["before,after,instruction,caption,edited_caption"]
    for pair in read_shards(pairs):
        for side in ("before", "after"):
            getattr(pair, side).save(folder / f"{pair.key}-{side}.png")
        files = f"{pair.key}-before.png,{pair.key}-after.png"
        lines.append(f"{files},{pair.instruction},{pair.caption},{pair.edited_caption}")
    (folder / "pairs.csv").write_text("\n".join(lines))
    return folder / "pairs.csv"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_pairs_becomes_shards_once(kind, pairs, tmp_path):
    path = as_kind(kind, pairs, tmp_path)
    shards = import_pairs(path, tmp_path / "out")
    texts = [p.instruction for p in read_shards(shards)]
    assert sorted(texts) == sorted(p.instruction for p in read_shards(pairs))
    assert (shards == path) == (kind == "shards")
    before = (shards / "manifest.json").stat().st_mtime_ns
    (path if path.is_dir() else path.parent).joinpath(".DS_Store").touch()
    assert import_pairs(path, tmp_path / "out") == shards
    assert (shards / "manifest.json").stat().st_mtime_ns == before
    if shards != path:  # a copy that was lost is made again
        (shards / "pairs-00000.tar").unlink()
        assert len(list(read_shards(import_pairs(path, shards)))) == 12
        write_shards(read_shards(pairs), tmp_path / "own")
        with pytest.raises(ValueError, match="own holds another data set"):
            import_pairs(path, tmp_path / "own")


def test_what_cannot_be_used_is_left_out_by_name(pairs, tmp_path, capsys):
    path = as_kind("table", pairs, tmp_path)
    lines = path.read_text().splitlines()
    Image.new("RGB", (8, 8)).save(tmp_path / "000003-after.png")
    path.write_text("\n".join([*lines[:3], "a,b", *lines[3:], "x" * 200_000]))
    kept = list(read_shards(import_pairs(path, tmp_path / "out")))
    assert len(kept) == 11
    said = capsys.readouterr().out
    assert "line 4: it has 2 cells" in said and "line 6: its images differ" in said
    path.write_text(lines[0] + "\na,b\n")
    with pytest.raises(ValueError, match="No pair at"):
        import_pairs(path, tmp_path / "out")


def test_a_path_without_pairs_is_named(pairs, tmp_path):
    with pytest.raises(ValueError, match="is not Parquet"):
        import_pairs(pairs, tmp_path, split="train")
    with pytest.raises(FileNotFoundError, match="nothing at"):
        import_pairs(tmp_path / "none", tmp_path / "out")
    with pytest.raises(ValueError, match="holds no pairs"):
        import_pairs(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(("count", "held_out"), [(6, "1"), (3, "0")])
def test_few_pairs_leave_most_of_them_to_train_on(
    count, held_out, pairs, words, tmp_path, capsys
):
    few = few_pairs(tmp_path, pairs, count)
    main([*options(words, few), "--out", str(tmp_path / "run")])
    out = capsys.readouterr().out
    assert f"{count - int(held_out)} pairs, 0 steps" in out
    assert "leaves out 33.3% of their area" in out
    card = (tmp_path / "run" / "editor" / "README.md").read_text()
    assert ("directional similarity 0." not in card) and "nan" not in card


def few_pairs(folder, pairs, count):
    """A table of the first ``count`` pairs, not square and without captions."""
    lines = ["before,after,instruction"]
    for i, pair in enumerate(read_shards(pairs)):
        if i < count:
            pair.before.resize((72, 48)).save(folder / f"{i}a.png")
            pair.after.resize((72, 48)).save(folder / f"{i}b.png")
            lines.append(f"{i}a.png,{i}b.png,{pair.instruction}")
    (folder / "few.csv").write_text("\n".join(lines))
    return folder / "few.csv"


def options(words, pairs):
    """The job's words with other pairs and the default of validation pairs."""
    given = dict(zip(words[::2], words[1::2], strict=True)) | {"--pairs": str(pairs)}
    del given["--validation-pairs"]
    return [word for item in given.items() for word in item]


def test_the_same_pairs_elsewhere_are_the_same(pairs, tmp_path):
    """A copy, another way to name the folder, or a file that was touched."""
    path = as_kind("table", pairs, tmp_path)
    path.write_text(
        path.read_text().replace(",000003-after.png", ', "000003-after.png"')
    )
    first = fingerprint(path)
    copy = copytree(tmp_path, tmp_path.parent / f"{tmp_path.name} copy")
    assert fingerprint(copy / "pairs.csv") == first
    image = copy / "000003-after.png"
    image.touch()
    assert fingerprint(copy / "pairs.csv") == first
    image.write_bytes(image.read_bytes() + b"x")
    assert fingerprint(copy / "pairs.csv") != first
    table = Table.from_pylist(
        [{"input_image": {"path": image.name}, "edited_image": "b"}]
    )
    write_table(table, copy / "train.parquet")
    found = {fingerprint(copy)}
    for name in (image.name, "b"):  # also in the middle of a large file
        (copy / name).write_bytes(bytes(10**6) + name.encode() + bytes(10**6))
        found.add(fingerprint(copy))
    assert len(found) == 3
