"""Asks the stand-in server about captions, to be killed: URL, ledger, how many."""

import sys

from ip2p_lib.language_service import ask_service, connect
from ip2p_lib.ledger import Ledger

if __name__ == "__main__":
    url, path, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    captions = [f"caption {place}" for place in range(count)]
    with connect(url) as client, Ledger(path, "killed") as ledger:
        replies = list(ask_service(captions, model="m", client=client, ledger=ledger))
    assert [reply.caption for reply in replies] == captions
    assert all(reply.triplet for reply in replies)
    assert "torch" not in sys.modules
