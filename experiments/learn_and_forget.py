"""Did subsets learn more and forget less, and did they beat random? Three domains, two regimes.

`domain_data.py` prepares the rows. `regimes` trains the full arm alone with several learning rates
and numbers of epochs; the regimes below were chosen from that table before any other arm was looked
at. `run` captures a domain and compares arms in one regime; it resumes, also from the item-by-item
scores that RESULTS holds already, and several processes may share a domain. With --done-only it
trains nothing, compares what is there, and notes which trainings are missing. `recompute` makes all
comparisons again from the item-by-item scores alone, without a run. `selections` says what the
ablations select, without training. `table` prints what README shows of a part.

RESULTS was made with `domain_data.py --test-rows 120 --bench-rows 200`.

Usage:
    python experiments/learn_and_forget.py regimes OUT --results RESULTS --domain medicine
    python experiments/learn_and_forget.py run OUT --results RESULTS --domain law --regime best
    python experiments/learn_and_forget.py recompute --results RESULTS
    python experiments/learn_and_forget.py selections OUT --results RESULTS --domain medicine
    python experiments/learn_and_forget.py table --results RESULTS
"""

import argparse
import json
import re
from pathlib import Path

import gradsift as gs
from gradsift.comparison.arms import parse_arms
from gradsift.comparison.results import EvaluatedModel, Scoreboard, caveats_of, questions_of
from gradsift.comparison.tables import Comparison
from gradsift.console import talk_on_stderr
from gradsift.evaluation.conclusions import decide
from gradsift.schema import RENAMED

TASKS = ("arc_easy", "blimp", "lambada", "piqa", "sciq")
MAX_LENGTH = 256
REGIMES = {
    "best": {"learning_rate": 2e-4, "epochs": 2},
    "harsh": {"learning_rate": 5e-4, "epochs": 2},
}
# Of the main part, trained several times: arms that are trained once borrow its spread.
LENDER = "random@5%"
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
        "k-means@50%:seeds=1",
        LENDER,
    ),
    "ablations": (
        "base",
        "random@50%",
        "grads@50%:seeds=1",
        *(f"grads@50%:{name}=0:seeds=1" for name in ("alpha", "beta", "gamma")),
        *(
            f"grads@50%:score={score}:seeds=1"
            for score in ("density", "high-norm", "high-norm-in-density", "prompt-gain")
        ),
        *(f"grads@50%:layers={layer}:seeds=1" for layer in ("embedding", "lm_head")),
        "grads@50%:detrend=none:seeds=1",
        # Every cluster of content keeps its share.
        "k-means@50%:seeds=1",
        LENDER,
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
    run.add_argument("--done-only", action="store_true")
    run.set_defaults(act=run_part)
    again = commands.add_parser("recompute")
    again.set_defaults(act=recompute)
    selections = commands.add_parser("selections")
    selections.set_defaults(act=tell_of_selections)
    for command in (regimes, run, selections):
        command.add_argument("out", type=Path, help="folder that domain_data.py filled")
        command.add_argument("--domain", required=True)
    table = commands.add_parser("table")
    table.add_argument("--part", choices=PARTS, default="main")
    table.set_defaults(act=print_table)
    for command in (regimes, run, again, selections, table):
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
    regime, arms, missing = REGIMES[arguments.regime], PARTS[arguments.part], []
    if arguments.done_only:
        arms, missing = done(arguments, regime, arms)
    compared(arguments, regime, arms, name, arguments.seeds, missing)


def done(arguments, regime, arms):
    """Return the arms that were trained, each with so many seeds, and what is missing."""
    run = arguments.out / "runs" / arguments.domain
    take_up(arguments.results / f"{arguments.domain}-cells.jsonl", run)
    wanted = {"learning_rate": regime["learning_rate"], "epochs": regime["epochs"]}
    trained = set()
    for path in (run / "arms").glob("*/scores.json"):
        cell = json.loads(path.read_text())
        training = cell["identity"]["training"]
        how = training and {**training["sft"], "epochs": training["epochs"]}
        if how is None or {key: how.get(key) for key in wanted} == wanted:
            trained.add((in_todays_words(cell["arm"]), cell["seed"]))
    arms_trained, missing = [], []
    for arm in parse_arms(arms, (), arguments.seeds):
        n = next((n for n in range(arm.n_seeds) if (arm.label, n) not in trained), arm.n_seeds)
        text = arm.text.partition(":seeds=")[0]
        if n:
            arms_trained.append(text if arm.name == "base" else f"{text}:seeds={n}")
        if n < arm.n_seeds:
            missing.append(f"{arm.label} ({n} of {arm.n_seeds})")
    return tuple(arms_trained), missing


def compared(arguments, regime, arms, name, seeds=1, missing=()):
    rows, run = arguments.out / "data" / arguments.domain, arguments.out / "runs" / arguments.domain
    general = arguments.out / "data" / "general"
    progress = talk_on_stderr()
    gs.capture(
        "demo",
        gs.load_pool(str(rows / "train.jsonl")),
        out=run,
        max_length=MAX_LENGTH,
        progress=progress,
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
        progress=progress,
    )
    print(result.text())
    arguments.results.mkdir(parents=True, exist_ok=True)
    summary = {**result.summary(), "run": arguments.domain, "missing": list(missing)}
    summary["made_with"] |= {"data": "train.jsonl", "test": "test.jsonl"}
    (arguments.results / f"{name}.json").write_text(json.dumps(summary, indent=1) + "\n")
    (arguments.results / f"{name}.md").write_text(result.markdown())
    lay_down(run, cells)


def take_up(cells, run):
    """Give the run folder what was evaluated on another machine."""
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


def recompute(arguments):
    """Make every comparison of the results again, with the intervals of today."""
    for path in sorted(arguments.results.glob("*.json")):
        before = json.loads(path.read_text())
        if "made_with" not in before:
            continue
        domain = path.name.partition("-")[0]
        cells = (arguments.results / f"{domain}-cells.jsonl").read_text().splitlines()
        models = models_of(before, [json.loads(line) for line in cells])
        if models is None:
            print(f"{path.name}: its scores are not in the cells; left as it is")
            continue
        board, costs = Scoreboard(models), before["cost"].values()
        comparison = Comparison(
            run=Path(before["run"]),
            board=board,
            verdicts=decide(questions_of(board)),
            capture_seconds=max(cost["capture_seconds"] for cost in costs),
            capture_tokens=max(cost["capture_tokens"] for cost in costs),
            made_with=before["made_with"],
            notes=tuple(dict.fromkeys([*before["notes"], *caveats_of(board)])),
        )
        summary = {**comparison.summary(), "missing": before.get("missing", [])}
        path.write_text(json.dumps(summary, indent=1) + "\n")
        if path.with_suffix(".md").exists():
            path.with_suffix(".md").write_text(comparison.markdown())


def models_of(comparison, cells):
    """Find the trainings of a comparison among the cells of its domain, by what they scored."""
    models = []
    saved = {in_todays_words(label): arm for label, arm in comparison["arms"].items()}
    for arm in parse_arms(list(map(in_todays_words, comparison["made_with"]["arms"])), (), 1):
        for index, loss in enumerate(saved[arm.label]["levels"]["loss"]["by_seed"]):
            found = [cell for cell in cells if is_training(cell, arm, index, loss)]
            if not found:
                return None
            cell = found[0]
            models.append(
                EvaluatedModel(arm, index, cell["n_rows"], cell["training"], cell["scores"])
            )
    return models


def is_training(cell, arm, index, loss):
    losses = cell["scores"]["rows"]["loss"]
    is_arm = in_todays_words(cell["arm"]) == arm.label and cell["seed"] == index
    return is_arm and abs(sum(losses) / len(losses) - loss) < 1e-9


def tell_of_selections(arguments):
    """What each ablation selects, and which of the paper's four failures is warned of."""
    run, rows = arguments.out / "runs" / arguments.domain, []
    store, usual = gs.read_store(run), None
    for arm in parse_arms(PARTS["ablations"], (), 1):
        settings = dict(arm.settings)
        if arm.name == "base" or settings.get("score") == "prompt-gain":
            continue
        name = f"ablation-{len(rows)}"
        result = gs.select(store, budget="50%", strategy=arm.name, name=name, **settings)
        chosen, audit = set(result.selection.ids), result.selection.audit
        usual = chosen if arm.label == "grads 50%" else usual
        rows.append(
            {
                "arm": arm.label,
                "shared_with_default": None if usual is None else len(chosen & usual) / len(chosen),
                **vars(result.selection.criteria["subset"]),
                "mean_loss": audit.loss[1],
                "duplicate_share": audit.duplicate_share[1],
                "warnings": list(result.warnings),
            }
        )
        print(rows[-1])
    (arguments.results / f"{arguments.domain}-selections.json").write_text(
        json.dumps(rows, indent=1) + "\n"
    )


def print_table(arguments):
    print(in_todays_words(evidence(arguments.results, arguments.part)))


def in_todays_words(text):
    """Arms of results that are older than the names of some settings: side=grounded and others."""

    def renamed(match):
        name, words = RENAMED.get(match[1], (match[1], {}))
        return f":{name}={words.get(match[2], match[2])}"

    return re.sub(r":(\w+)=([\w-]+)", renamed, text)


def evidence(results, part="main"):
    """One table for each domain and regime, and the answers to the questions."""
    parts = []
    for path in sorted(results.glob(f"*-{part}.json")):
        result = json.loads(path.read_text())
        domain, regime, _ = path.stem.split("-")
        training = result["made_with"]["training"]
        how = f"{training['epochs']:g} epochs at {training['sft']['learning_rate']:g}"
        head = "| | seeds | loss | BLEU | METEOR | accuracy forgotten | text loss forgotten |"
        lines = [f"**{domain}**, {how} ({regime})", "", head, "| --- " * 7 + "|"]
        for label, arm in result["arms"].items():
            levels, forgotten = arm["levels"], arm["forgotten"]
            cells = [ends(levels["loss"], 3), ends(levels["bleu"], 1), ends(levels["meteor"], 1)]
            cells += [ends(forgotten.get("accuracy"), 1), ends(forgotten.get("text_loss"), 3)]
            lines.append(f"| {label} | {arm['n_seeds']} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
        asked = {"learning": "learnt more than", "general": "forgot less than"}
        opposite = {"learning": "no, it learnt less", "general": "no, it forgot more"}
        parts.append(
            "\n".join(
                f"* {v['arm']} {asked[v['question']]} {v['rival']}: "
                f"{opposite[v['question']] if v['answer'] == 'no' else v['answer']}"
                for v in result["verdicts"]
            )
        )
        if result["missing"]:
            parts.append(f"Trainings that are missing: {', '.join(result['missing'])}.")
    return "\n\n".join(parts)


def ends(interval, digits):
    if interval is None:
        return ""
    return f"{interval['value']:.{digits}f} ± {interval['high'] - interval['value']:.{digits}f}"


if __name__ == "__main__":
    main()
