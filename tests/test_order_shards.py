"""Which shards are read by whom and when."""

from itertools import pairwise, takewhile

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from test_order import streams

from pipeline.data.order import StreamOrder


@settings(deadline=None, max_examples=60)
@given(streams(), st.integers(0, 40))
def test_stretches_name_the_shards_that_a_lane_reads_and_when(
    stream: tuple[list[int], int, int, int | None], drawn: int
) -> None:
    counts, lanes, _, window = stream
    order = StreamOrder(counts, task="sr2", seed=1, lanes=lanes, window=window)
    end = drawn + 3 * sum(counts) // lanes

    for lane in range(lanes):
        found = list(takewhile(lambda each: each.end <= end, order.stretches(lane, drawn)))

        assert all(one.end == other.first for one, other in pairwise(found))
        assert not found or found[0].first <= drawn < found[0].end
        for stretch in found:
            read = {
                int(order.ids(draw, lanes, np.array([lane])).shards[0])
                for draw in range(max(0, stretch.first), stretch.end)
            }
            assert sorted(read) == sorted(stretch.shards.tolist())


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=9).filter(lambda counts: sum(counts) >= 8),
    st.sampled_from([(2, 1), (2, 4), (4, 2), (8, 1)]),
    st.none() | st.integers(1, 4),
    st.integers(0, 3),
)
def test_a_shard_is_read_by_one_node_and_by_one_more_for_each_cut_through_it(
    counts: list[int], nodes_and_lanes: tuple[int, int], window: int | None, number: int
) -> None:
    nodes, lanes_of_node = nodes_and_lanes
    if (lanes := nodes * lanes_of_node) > sum(counts):
        return
    order = StreamOrder(counts, task="sr2", seed=2, lanes=lanes, window=window)
    visits = -(-(number + 1) * sum(counts) // lanes) + 1

    readers: dict[int, set[int]] = {}
    for visit in range(visits):
        ids = order.ids(visit, lanes, np.arange(lanes))
        for lane in np.flatnonzero(ids.passes == number).tolist():
            readers.setdefault(int(ids.shards[lane]), set()).add(lane // lanes_of_node)

    # Nodes read consecutive stretches of the pass: one cut between each two of them.
    assert sorted(readers) == list(range(len(counts)))
    assert sum(len(each) - 1 for each in readers.values()) <= nodes - 1
    assert all(max(each) - min(each) + 1 == len(each) for each in readers.values())
