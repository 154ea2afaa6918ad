"""What Kubernetes' HorizontalPodAutoscaler asks for, as its documentation states the algorithm.

https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/#algorithm-details
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

TOLERANCE = 0.1  # of the ratio of value and target
TARGETS = {"busy": 0.7, "queue_s": 0.5}  # averages over the replicas


def wanted(value: float, target: float, *, replicas: int) -> int:
    """Return the number of replicas with which the average of a metric would be at its target.

    Args:
        value: average of the metric over the replicas.
        target: the wanted average of the measured value.
        replicas: number of replicas now.
    """
    ratio = value / target
    return replicas if abs(ratio - 1) <= TOLERANCE else math.ceil(replicas * ratio)


@dataclass(kw_only=True)
class Autoscaler:
    """An autoscaler with the default behaviour: up at once, down to the most that was wanted in the last 5 minutes.

    Attributes:
        targets: target by metric. The metric that wants most decides.
        least: smallest number of replicas.
        most: largest number of replicas.
        period_s: seconds between two looks at the metrics. In this time the number grows by 4 or doubles at most.
        window_s: seconds for which a recommendation holds the number up.
    """

    targets: Mapping[str, float] = field(default_factory=lambda: TARGETS)
    least: int = 2
    most: int = 100
    period_s: float = 15.0
    window_s: float = 300.0
    _recent: deque[tuple[float, int]] = field(default_factory=deque, init=False)

    def ask(self, now: float, metrics: Mapping[str, float], *, replicas: int) -> int:
        """Return the number of replicas to have from now on.

        Args:
            now: time in seconds.
            metrics: average over the replicas by metric.
            replicas: number of replicas now.
        """
        want = max(wanted(metrics[name], target, replicas=replicas) for name, target in self.targets.items())
        self._recent.append((now, want))
        while self._recent[0][0] < now - self.window_s:
            self._recent.popleft()
        want = max(count for _, count in self._recent)
        return max(self.least, min(want, self.most, max(replicas + 4, 2 * replicas)))
