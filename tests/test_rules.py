"""The recording rules and alerts compute what they say, by Prometheus' own promtool."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from benchmarks.autoscaling.prometheus import find_program

ROOT = Path(__file__).parents[1]
RULES = ROOT / "deploy/prometheus/m2f.rules.yml"
CASES = ROOT / "tests/rules_test.yml"


@pytest.fixture
def promtool():
    """Run promtool, and return its output; it must not fail."""
    program = find_program("promtool")
    if program is None:
        if "CI" in os.environ:
            pytest.fail("CI has no promtool: make .venv/.prometheus")
        pytest.skip("there is no promtool: make .venv/.prometheus")

    def call(*arguments):
        done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return call


def test_prometheus_takes_the_rules_and_the_configuration(promtool):
    assert "SUCCESS" in promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)
    assert "SUCCESS" in promtool("check", "config", ROOT / "deploy/prometheus/prometheus.yml")


def test_records_and_alerts_compute_what_they_say(promtool):
    assert "SUCCESS" in promtool("test", "rules", CASES)


def test_every_rule_has_a_case():
    groups = yaml.safe_load(RULES.read_text())["groups"]
    rules = {rule.get("record") or rule["alert"] for group in groups for rule in group["rules"]}
    assert rules - set(re.findall(r"[\w:]+", CASES.read_text())) == set()
