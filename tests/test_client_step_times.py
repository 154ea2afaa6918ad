"""What Triton's statistics say of the steps."""

import pytest

from m2f_client.step_times import Spent, StepTime, spent, steps_between

COUNTERS = {
    "success": {"count": 2, "ns": 90},
    "queue": {"count": 2, "ns": 5},
    "compute_input": {"count": 2, "ns": 1},
    "compute_infer": {"count": 2, "ns": 20},
    "compute_output": {"count": 2, "ns": 300},
}


@pytest.mark.parametrize(
    "statistics",
    [
        [{"name": "a", "version": "1", "inference_stats": COUNTERS}],
        [{"name": "a", "version": "1"}, {"name": "a", "version": "2", "inference_stats": COUNTERS}],  # two versions
        [  # gRPC's JSON: 64-bit numbers are text, zeros are left out
            {
                "name": "a",
                "inference_stats": {k: {m: str(n) for m, n in v.items()} for k, v in COUNTERS.items()} | {"fail": {}},
            }
        ],
    ],
)
def test_statistics_of_both_protocols_are_read(statistics):
    assert spent(statistics) == {"a": Spent(requests=2, work_ns=321, wait_ns=5, total_ns=90)}


def test_steps_are_means_of_the_requests_in_between():
    before = {"a": Spent(10, 5_000_000, 0, 0, 10, 10), "b": Spent(3)}
    after = {
        "a": Spent(12, 9_000_000, 1_000_000, 0, 16, 12),
        "b": Spent(3),
        "c": Spent(1, 7_000_000, images=1, executions=1),
    }
    assert steps_between(before, after, ["c", "b", "a"]) == (
        StepTime("c", 7, 0),
        StepTime("a", 2, 0.5, batch=3),
    )  # b had no request
