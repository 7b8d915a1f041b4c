"""What the stories of `recipes/scaling/` measured, gathered from their run folders into one file and one plot.

    python benchmarks/scaling.py runs/ladder-small runs/mix runs/anneal runs/extend-context runs/optimizers

Writes `benchmarks/results/scaling.json` (each run with its tokens, FLOPs and seconds; the law, the forecast, the
comparison, the mixture, the sources' worth) and `scaling.svg`, the plot of the law.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from train_step import commit, hardware

from herd.run import read_manifest
from herd.scaling.plots import draw_fit

matplotlib.use("Agg")
RESULTS = Path(__file__).parent / "results"
FILES = {
    "scaling fit": "fit.json",
    "scaling predict": "forecast.json",
    "scaling compare": "comparison.json",
    "scaling mix": "mix.json",
    "scaling worth": "worth.json",
}
TOLD = ("parameters", "tokens", "flops", "loss", "heldout_bits_per_byte", "left_out")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stories", nargs="+", type=Path)
    result = {"date": time.strftime("%Y-%m-%d"), "commit": commit(), "hardware": hardware(2)}
    for story in parser.parse_args().stories:
        result[story.name] = of_story(story)
    (RESULTS / "scaling.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: list(one) for name, one in result.items() if isinstance(one, dict)}, indent=1))


def of_story(story: Path) -> dict:
    """The runs of a story, and what its commands made of them."""
    found: dict = {"command": f"herd story scaling/{story.name}.yaml", "runs": {}}
    for folder in sorted(one.parent for one in story.glob("*/run.json")):
        manifest = read_manifest(folder)
        if manifest["state"] != "finished":
            continue
        if manifest["stage"] == "pretrain":
            own = {name: value for name, value in manifest["figures"].items() if name in TOLD or "_" in name}
            found["runs"][folder.name] = own | {"seconds": manifest["seconds"]}
        elif file := FILES.get(manifest["stage"]):
            record = json.loads((folder / file).read_text(encoding="utf-8"))
            if manifest["stage"] == "scaling fit":
                draw(record)
            found[folder.name] = {name: value for name, value in record.items() if name != "draws"}
    found["flops"] = sum(one.get("flops", 0) for one in found["runs"].values())
    found["seconds"] = round(sum(one["seconds"] for one in found["runs"].values()))
    return found


def draw(record: dict) -> None:
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    draw_fit(figure, record)
    figure.savefig(RESULTS / "scaling.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
