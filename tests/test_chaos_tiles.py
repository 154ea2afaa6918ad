"""A large TIFF in tiles against the real server: killed in the middle and resumed, on its benchmark's figures."""

import pytest
from benchmarks.tiles.large import IN_FLIGHT, QUICK_SIDE, measured, tables

MEMORY_MB = 500  # of the client, beyond the pixels of one row of tiles

pytestmark = [pytest.mark.chaos, pytest.mark.server]


def test_no_tile_is_asked_twice_and_memory_is_bounded():
    [row] = measured(None, side=QUICK_SIDE)
    assert 0.5 * row["tiles"] <= row["kept_at_the_kill"] < row["tiles"]
    assert 0 <= row["asked_again"] <= IN_FLIGHT  # those in flight at the kill
    assert row["asked_by_the_first"] <= row["kept_at_the_kill"] + IN_FLIGHT
    assert row["peak_mb"] - row["tile_row_mb"] < MEMORY_MB
    assert row["once"] >= 0.8 * row["objects"]
    [table] = tables([row | {"side": QUICK_SIDE}])
    assert len(table.lines) == len({line[0] for line in table.lines})
