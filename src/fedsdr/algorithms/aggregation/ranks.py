"""Clients of smaller rank: the adapter that each rank's local training starts from."""

from fedsdr.algorithms.contract import ServerState
from fedsdr.core.adapters import Adapter, rank_of, resize_rank

SMALLER = "smaller-"


def rank_prefix(rank: int | None) -> str:
    """The prefix under which the starting point of a smaller rank is kept and sent."""
    return f"{SMALLER}{rank}/"


def starting_point(state: ServerState, rank: int) -> Adapter:
    """The kept one of that rank, or else the first components of the global adapter."""
    if rank == rank_of(state.adapter):
        return state.adapter
    return dict(state.memory.get(rank_prefix(rank)) or resize_rank(state.adapter, rank))
