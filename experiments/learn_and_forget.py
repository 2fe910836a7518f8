"""Did subsets learn more and forget less, and did they beat random? Three domains, two regimes.

`domain_data.py` prepares the rows. `regimes` trains the full arm alone with several learning rates
and numbers of epochs; the regimes below were chosen from that table before any other arm was looked
at. `run` captures a domain and compares arms in one regime; it resumes, also from the item-by-item
scores that RESULTS holds already, and several processes may share a domain. `table` prints what
README shows.

Usage:
    python experiments/learn_and_forget.py regimes OUT --results RESULTS --domain medicine
    python experiments/learn_and_forget.py run OUT --results RESULTS --domain law --regime best
    python experiments/learn_and_forget.py table --results RESULTS
"""

import argparse
import json
from pathlib import Path

import gradsift as gs
from gradsift.progress import stderr_listener

TASKS = ("arc_easy", "blimp", "lambada", "piqa", "sciq")
MAX_LENGTH = 256
REGIMES = {
    "best": {"learning_rate": 2e-4, "epochs": 2},
    "harsh": {"learning_rate": 5e-4, "epochs": 2},
}
PARTS = {
    "main": (
        "base",
        "full:seeds=1",
        "full-equal-steps@50%:seeds=1",
        "random@50%",
        "grads@50%",
        "random@5%",
        "grads@5%",
    ),
    "rivals": (
        "base",
        "full:seeds=1",
        "random@50%",
        "grads@50%:seeds=1",
        "loss-low@50%:seeds=1",
        "facility-location@50%:seeds=1",
        "longest@50%:seeds=1",
    ),
    "ablations": (
        "base",
        "random@50%",
        "grads@50%:seeds=1",
        *(f"grads@50%:{name}=0:seeds=1" for name in ("alpha", "beta", "gamma")),
        *(
            f"grads@50%:side={side}:seeds=1"
            for side in ("representative", "informative", "balanced", "grounded")
        ),
        *(f"grads@50%:layers={layer}:seeds=1" for layer in ("embedding", "lm_head")),
        "grads@50%:adjust=none:seeds=1",
    ),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    regimes = commands.add_parser("regimes")
    regimes.add_argument("--rates", type=float, nargs="+", default=[5e-5, 1e-4, 2e-4, 5e-4])
    regimes.add_argument("--epochs", type=float, nargs="+", default=[1, 2])
    regimes.set_defaults(act=try_regimes)
    run = commands.add_parser("run")
    run.add_argument("--regime", choices=REGIMES, required=True)
    run.add_argument("--part", choices=PARTS, default="main")
    run.add_argument("--seeds", type=int, default=3, help="of the arms that name no number")
    run.set_defaults(act=run_part)
    for command in (regimes, run):
        command.add_argument("out", type=Path, help="folder that domain_data.py filled")
        command.add_argument("--domain", required=True)
    table = commands.add_parser("table")
    table.set_defaults(act=print_table)
    for command in (regimes, run, table):
        command.add_argument("--results", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.act(arguments)


def try_regimes(arguments):
    for epochs in arguments.epochs:
        for rate in arguments.rates:
            name = f"{arguments.domain}-full-{rate:g}-{epochs:g}"
            regime = {"learning_rate": rate, "epochs": epochs}
            compared(arguments, regime, ("base", "full:seeds=1"), name)


def run_part(arguments):
    name = f"{arguments.domain}-{arguments.regime}-{arguments.part}"
    regime, arms = REGIMES[arguments.regime], PARTS[arguments.part]
    compared(arguments, regime, arms, name, arguments.seeds)


def compared(arguments, regime, arms, name, seeds=1):
    rows, run = arguments.out / "data" / arguments.domain, arguments.out / "runs" / arguments.domain
    general = arguments.out / "data" / "general"
    listener = stderr_listener()
    gs.capture(
        "demo",
        gs.load_pool(str(rows / "train.jsonl")),
        out=run,
        max_length=MAX_LENGTH,
        listener=listener,
    )
    cells = arguments.results / f"{arguments.domain}-cells.jsonl"
    take_up(cells, run)
    result = gs.compare(
        run,
        test=str(rows / "test.jsonl"),
        arms=arms,
        seeds=seeds,
        general=[*(str(general / f"{task}.yaml") for task in TASKS), str(general / "text.txt")],
        epochs=regime["epochs"],
        sft={"learning_rate": regime["learning_rate"]},
        name=name,
        listener=listener,
    )
    print(result.text())
    arguments.results.mkdir(parents=True, exist_ok=True)
    summary = {**result.summary(), "run": arguments.domain}
    summary["made_with"] |= {"data": "train.jsonl", "test": "test.jsonl"}
    (arguments.results / f"{name}.json").write_text(json.dumps(summary, indent=1) + "\n")
    (arguments.results / f"{name}.md").write_text(result.markdown())
    lay_down(run, cells)


def take_up(cells, run):
    """Give the run folder what was examined on another machine."""
    if not cells.exists():
        return
    for line in cells.read_text().splitlines():
        cell = json.loads(line)
        folder = run / "arms" / cell.pop("folder")
        if not (folder / "scores.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "scores.json").write_text(json.dumps(cell))


def lay_down(run, cells):
    """Keep the scores of every arm, item by item, in a file that is committed."""
    lines = []
    for path in sorted((run / "arms").glob("*/scores.json")):
        cell = {"folder": path.parent.name, **json.loads(path.read_text())}
        if cell["training"] is not None:
            cell["training"].pop("loss_curve", None)
        lines.append(json.dumps(cell, separators=(",", ":")))
    cells.write_text("\n".join(lines) + "\n")


def print_table(arguments):
    for path in sorted(arguments.results.glob("*-main.md")):
        print(f"### {path.stem}\n\n{path.read_text()}")


if __name__ == "__main__":
    main()
