"""The rules under a real Prometheus and a real load: `python -m benchmarks.autoscaling`, in its short form."""

import pytest
from benchmarks.autoscaling import measure
from benchmarks.autoscaling.prometheus import find_program

pytestmark = [pytest.mark.chaos, pytest.mark.server]


@pytest.mark.skipif(find_program("prometheus") is None, reason="there is no prometheus: make .venv/.prometheus")
def test_the_busy_share_is_the_truth_and_the_compute_counter_is_not():
    with measure.watched() as stage:
        rows = measure.measured(stage, shares=[0.5, 1.4], step_s=75)
    idle, full = (max((row for row in rows if row["at_s"] < end), key=lambda row: row["at_s"]) for end in (75, 150))
    assert full["requests_failed"] == 0, "a server broke, so nothing was measured"
    assert idle["busy"] == pytest.approx(idle["worked"], abs=0.1)
    assert full["busy"] == pytest.approx(full["worked"], abs=0.1)
    assert full["busy"] < 1.1
    assert full["counter"] > 2
    assert idle["queue_s"] < 1
    assert full["queue_s"] > 1
    assert idle["turned_away_s"] == 0
    assert idle["asked"] <= measure.REPLICAS < full["asked"]
