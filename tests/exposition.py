"""What a server exports for Prometheus, read as Prometheus reads it."""

import time
import urllib.request
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

WITHIN_S = 60  # steps send what they counted once a second; a loaded machine takes its time


@dataclass
class Exposition:
    """One scrape: samples with name, labels and value."""

    samples: list

    def names(self):
        return {sample.name for sample in self.samples}

    def values(self, name, **labels):
        """The values of all series of a name that have these labels."""
        return [s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items()]

    def total(self, name, **labels):
        return sum(self.values(name, **labels))


def scrape(server):
    return read(server.metrics_url)


def read(url):
    with urllib.request.urlopen(url, timeout=10) as response:
        lines = response.read().decode().splitlines(keepends=True)
    text = "".join(line for line in lines if not line.startswith("#"))  # of a known type, names would be changed
    return Exposition([sample for family in text_string_to_metric_families(text) for sample in family.samples])


def wait_until(condition, read, *, within=WITHIN_S):
    """Read again and again until it satisfies the condition; return the last reading, whether it does or not."""
    deadline = time.monotonic() + within
    while not condition(reading := read()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return reading
