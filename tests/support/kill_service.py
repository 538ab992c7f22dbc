"""Asks the stand-in server, to be killed: URL, ledger, how many captions, form."""

import sys

from ip2p_lib.triplets.ledger import Ledger
from ip2p_lib.triplets.service import ask_service, connect

if __name__ == "__main__":
    url, path, count, form = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    captions = [f"caption {place}" for place in range(count)]
    with connect(url) as client, Ledger(path, "killed") as ledger:
        more = {"client": client, "ledger": ledger, "form": form}
        replies = list(ask_service(captions, model="m", **more))
    assert [reply.caption for reply in replies] == captions
    assert all(reply.triplet for reply in replies)
    assert "torch" not in sys.modules
