"""The dashboard, the alerts and docs/observability.md name only what the real server exports, and all of ours."""

import json
import re
from pathlib import Path

import promql_parser
import pytest
import yaml
from exposition import Exposition, read, scrape, wait_until
from kserve import connect, image_input
from pictures import encode, photo
from supervised import supervised
from tritonclient.utils import InferenceServerException

from m2f.contract import HEAD, HEAD_ENGINE, OUTPUTS, PUBLIC_MODEL, STEPS, TENSOR, model_name

pytestmark = pytest.mark.server
ROOT = Path(__file__).parents[1]
MANUAL = ROOT / "docs/observability.md"
DASHBOARD = json.loads((ROOT / "deploy/grafana/m2f.json").read_text())
RULES = yaml.safe_load((ROOT / "deploy/prometheus/m2f.rules.yml").read_text())
ALERTS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule}
RECORDS = {rule["record"]: rule for group in RULES["groups"] for rule in group["rules"] if "record" in rule}
PANELS = {f"{panel['id']} {panel['title']}": panel for panel in DASHBOARD["panels"] if panel["type"] != "row"}
EXPRESSIONS = [(f"rule {name}", rule["expr"]) for name, rule in (RECORDS | ALERTS).items()] + [
    (f"panel {name}", target["expr"]) for name, panel in PANELS.items() for target in panel["targets"]
]
NEEDS_GPU = {
    "nv_gpu_utilization",
    "nv_gpu_memory_used_bytes",
    "nv_gpu_memory_total_bytes",
    "nv_gpu_power_usage",
    "nv_energy_consumption",
}
OF_PROMETHEUS = {"up", *RECORDS}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A scrape of `tritonserver` and of `m2f serve` after requests of every sort."""
    with supervised(tmp_path_factory.mktemp("monitored")) as running:
        triton = connect(running, "grpc")
        triton.infer(PUBLIC_MODEL, image_input(encode(photo())), [tensor.name for tensor in OUTPUTS])
        with pytest.raises(InferenceServerException):
            triton.infer(PUBLIC_MODEL, image_input(b"no picture"), ["scores"])
        complete = {"m2f_instances_count", "m2f_images_total", "m2f_phase_seconds_total", "nv_cpu_memory_used_bytes"}
        own = wait_until(
            lambda ours: "m2f_busy_seconds_total" in ours.names(), lambda: read(running.at_health("metrics"))
        )
        theirs = wait_until(lambda exposition: complete <= exposition.names(), lambda: scrape(running))
        return Exposition(theirs.samples + own.samples)


def selectors(expression):
    """The metrics that a PromQL expression reads, as the parser understands it."""
    found = []

    def visit(node):
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        return True

    for variable, value in {"$__rate_interval": "5m", "${model:regex}": PUBLIC_MODEL}.items():
        expression = expression.replace(variable, value)
    promql_parser.walk(promql_parser.parse(expression), visit)
    assert found
    return found


def matches(matcher, labels):
    value = labels.get(matcher.name, "")
    if matcher.op == promql_parser.MatchOp.Equal:
        return value == matcher.value
    if matcher.op == promql_parser.MatchOp.NotEqual:
        return value != matcher.value
    found = re.fullmatch(matcher.value, value)
    return not found if matcher.op == promql_parser.MatchOp.NotRe else found


@pytest.mark.parametrize(("name", "expression"), EXPRESSIONS, ids=[name for name, _ in EXPRESSIONS])
def test_an_expression_selects_series_that_the_server_exports(exported, name, expression):
    for selector in selectors(expression):
        if selector.name in NEEDS_GPU | OF_PROMETHEUS:
            continue
        # of the label that Prometheus adds, and the variables of the dashboard, and the kernel that may not be here
        matchers = [m for m in selector.matchers.matchers if m.name not in ("job", "instance", "kernel")]
        series = [
            s for s in exported.samples if s.name == selector.name and all(matches(m, s.labels) for m in matchers)
        ]
        assert series, f"{name}: nothing is exported for {selector.prettify()}"


def test_the_manual_names_only_what_exists(exported):
    named = set(re.findall(r"\b(?:m2f|nv)_[a-z0-9_]+\b", MANUAL.read_text()))
    assert named - exported.names() - NEEDS_GPU - {"m2f_instances"} == set()


def test_the_manual_names_all_of_ours_and_all_that_is_watched(exported):
    text = MANUAL.read_text()
    ours = {re.sub(r"_(count|sum|bucket)$", "", name) for name in exported.names() if name.startswith("m2f_")}
    watched = {selector.name for _, expression in EXPRESSIONS for selector in selectors(expression)}
    watched = {re.sub(r"(m2f_instances)_\w+$", r"\1", name) for name in watched}
    assert {name for name in (ours | watched) - OF_PROMETHEUS if f"`{name}`" not in text} == set()


def test_every_record_and_every_alert_is_explained(exported):  # noqa: ARG001
    text = MANUAL.read_text()
    assert {name for name in RECORDS | ALERTS if f"`{name}`" not in text} == set()
    for rule in ALERTS.values():
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"]["summary"]
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "0s"))


def test_what_is_counted_for_a_model_is_of_that_model():
    """PromQL cannot read an ensemble's configuration, so rules and dashboard know the names that the exporter makes."""
    steps = (*STEPS, TENSOR, HEAD, HEAD_ENGINE)
    models = {public: [public, *(model_name(public, step) for step in steps)] for public in ("parts", "parts_left")}
    expressions = [expression for _, expression in EXPRESSIONS]
    for pattern in {found for text in expressions for found in re.findall(r'"model", "([^"]+)"', text)}:
        for public, names in models.items():
            counted = {name: found[1] for name in names if (found := re.fullmatch(pattern, name))}
            assert public in counted.values()
            assert all(counted[name] in (public, name) for name in counted)
    for pattern in {found for text in expressions for found in re.findall(r'\$\{model:regex\}([^"]*)"', text)}:
        chosen = {name for names in models.values() for name in names if re.fullmatch("parts" + pattern, name)}
        assert chosen
        assert chosen <= set(models["parts"])


def test_prometheus_scrapes_what_the_rules_are_about():
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    assert config["rule_files"] == ["m2f.rules.yml"]
    (job,) = [scraped["job_name"] for scraped in config["scrape_configs"]]
    for rule in (RECORDS | ALERTS).values():
        for selector in [found for found in selectors(rule["expr"]) if found.name not in RECORDS]:
            assert [m.value for m in selector.matchers.matchers if m.name == "job"] == [job]


def test_the_dashboard_can_be_imported():
    assert {variable["name"] for variable in DASHBOARD["templating"]["list"]} == {
        "datasource",
        "job",
        "instance",
        "model",
    }
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, f"{panel['title']} lies on another panel"
        taken |= cells
