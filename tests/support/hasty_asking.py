"""A service asked in haste: between two tries there are milliseconds."""

from ip2p_lib.triplets.record import Triplet
from ip2p_lib.triplets.service import Patience, ask_service

HASTE = Patience(tries=6, first=0.001, longest=0.01)
NIGHT = Triplet("a castle", "make it night", "a castle at night")  # a right answer


def ask(captions, client, **more):
    return ask_service(captions, model="m", client=client, patience=HASTE, **more)
