"""Shards of `m2f predict` on the real server, three of them killed at random images: the benchmark in small."""

import pytest
from benchmarks.shards import measured, tables

pytestmark = [pytest.mark.chaos, pytest.mark.server, pytest.mark.timeout(1200)]
GROWTH_MB = 16  # the most from a quarter of a shard's images to its end


def test_each_picture_is_there_once_and_memory_stays_flat():
    rows = measured(images=8000, count=8, kills=3, at_once=4)
    *shards, whole = rows
    assert (whole["pictures"], whole["missing"], whole["several_times"], whole["wrong"]) == (8000, 0, 0, 0)
    assert whole["processes"] == 8 + 3
    assert sum(shard["images"] for shard in shards) == 8000
    assert max(shard["most_mb"] - shard["early_mb"] for shard in shards) < GROWTH_MB
    assert [table.name for table in tables(rows)] == ["whole", "shards"]
