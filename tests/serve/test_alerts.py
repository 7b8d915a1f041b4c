"""The alert rule fires where a guard flags much, and reads counters and labels that the server has."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from herd.config import find_recipe
from herd.serve.metrics import Metrics
from herd.serve.models import Models
from herd.serve.turn import Turn
from herd.serve.watch import Watch
from herd.types import SamplingParams

RULES = find_recipe(Path("monitoring/alerts.yaml"))


def test_the_rule_reads_what_the_server_counts():
    pytest.importorskip("prometheus_client")
    watch = Watch([])
    watch.note_code([], Turn(inputs=["x"], params=SamplingParams(), owner="ann"))
    page = Metrics(Models({}), watch).page()[0].decode()
    (rule,) = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    labels = set(re.findall(r"(\w+)=", re.search(r"^herd_verdicts_total\{(.*)\} 1", page, re.M)[1]))
    asked = {*re.findall(r"by \(([^)]*)\)", rule["expr"])[0].split(", "), *re.findall(r"\{(\w+)=", rule["expr"])}
    assert asked <= labels and "herd_verdicts_total" in rule["expr"]


def test_the_rule_fires_where_much_is_flagged_and_only_there():
    if not (tool := shutil.which("promtool")):
        pytest.skip("promtool (Prometheus) is not installed")
    done = subprocess.run([tool, "test", "rules", str(Path(__file__).with_name("alerts.yaml"))], capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
