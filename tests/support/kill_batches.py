"""Asks the stand-in server in batches, to be killed: URL, ledger, how many."""

import sys

from ip2p_lib.triplets.batch import ask_in_batches
from ip2p_lib.triplets.cost import Price
from ip2p_lib.triplets.ledger import Ledger
from ip2p_lib.triplets.service import connect

PRICE = Price("m", read=0.1, written=0.5)

if __name__ == "__main__":
    url, path, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    captions = [f"caption {place}" for place in range(count)]
    with connect(url) as client, Ledger(path, "killed") as ledger:
        more = {"poll_seconds": 0.01, "most_requests": count // 2, "ceiling": 1.0}
        replies = list(
            ask_in_batches(
                captions, model="m", client=client, ledger=ledger, price=PRICE, **more
            )
        )
    assert [reply.caption for reply in replies] == captions
    assert all(reply.triplet for reply in replies)
    assert "torch" not in sys.modules
