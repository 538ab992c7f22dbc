"""Pairs on disk: generated, stored, exported, read back (section 3.1.2, notebook 03).

Read ``pairs`` (one pair and its files), ``shards`` (many pairs in a tar file),
``dataset`` (a folder of shards, its manifest and readers), then ``generate`` (triplets
in, filtered pairs out). Formats of others: ``hub`` (Parquet for ``datasets``),
``authors_format`` (the released scripts), ``csv_table`` (your own images). ``card``
describes a data set for the Hub.
"""

from ip2p_lib.dataset.authors_format import export_folders, read_folders
from ip2p_lib.dataset.card import write_card
from ip2p_lib.dataset.csv_table import read_table
from ip2p_lib.dataset.dataset import (
    DatasetError,
    PairDataset,
    read_shards,
    stack,
    validate,
    write_shards,
)
from ip2p_lib.dataset.generate import GenerationConfig, Models, generate_dataset
from ip2p_lib.dataset.hub import export_parquet, read_parquet
from ip2p_lib.dataset.pairs import Pair

__all__ = [
    "DatasetError",
    "GenerationConfig",
    "Models",
    "Pair",
    "PairDataset",
    "export_folders",
    "export_parquet",
    "generate_dataset",
    "read_folders",
    "read_parquet",
    "read_shards",
    "read_table",
    "stack",
    "validate",
    "write_card",
    "write_shards",
]
