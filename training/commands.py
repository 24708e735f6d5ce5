"""What each command of `python -m training` does. Only this file, `experiments.py`
and `verify.py` print.

TensorFlow is imported inside the functions that compute: listing and reusing need none.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from model import signatures
from model.config import MODEL_CONFIGS, TOKENIZER_CONFIGS
from model.config.checks import require
from model.runtime import import_tensorflow
from training.config import (
    CLASSIFICATION,
    GENERATION,
    OBJECTIVES,
    WORD_VECTORS,
    RunConfig,
    override,
)
from training.datasets import DATASETS, load_dataset, read_documents, read_labelled, read_texts
from training.datasets.config import TARGETS, USER_FILE, DatasetConfig
from training.experiments import compare, find_rate, search, tell_initial_weights
from training.hardware import by_device, use_threads
from training.leakage import examples, find_leakage
from training.options import INTERRUPTED
from training.recipes import FIRST_STEPS, RECIPES, fine_tuned, recipe
from training.recipes.auto import AUTO
from training.runs import (
    ENSEMBLE_FILE,
    RESULTS_FILE,
    find_run,
    newest_export,
    read_config,
    read_json,
    run_folder,
    write_json,
)
from training.schedules import SCHEDULES
from training.strategies.catalogue import OPTIMIZERS, STRATEGIES
from training.verify import verify_resume


def plot_schedule(options: argparse.Namespace) -> int:
    from training.plots import plot_schedules

    plot_schedules(options.expressions, options.updates, options.output)
    print(f"Written to {options.output}")
    return 0


def fit(options: argparse.Namespace) -> int:
    if (options.recipe is None) == (options.config is None):
        raise ValueError(
            "fit takes a recipe or --config FILE, one of the two. "
            f"Recipes: {', '.join(RECIPES)}; {AUTO} tries several on your data. First steps: "
            f"{', '.join(FIRST_STEPS)}."
        )
    if options.recipe in FIRST_STEPS:
        return take_first_step(options)
    if options.recipe == AUTO:
        return fit_auto(options)
    config = read_config(options.config) if options.config else recipe(options.recipe)
    if options.name:
        config = dataclasses.replace(config, name=options.name)
    config = changed(config, options)
    if options.refit:
        _refuse(
            options,
            ("replicas", "dry_run", "overfit_one_batch"),
            "cannot go with --refit, which trains two runs, one after the other",
        )
    if options.overfit_one_batch:
        return _overfit_one_batch(config, options)
    _refuse(options, ("stage", "updates"), "goes with --overfit-one-batch")
    if options.dry_run:
        _refuse(options, ("budget",), "cannot go with --dry-run, which trains nothing")
        return _dry_run(config, options.runs)
    if options.budget:
        config = _within(config, options)
    folder = run_folder(options.runs, config)
    is_chief = _place()[1] == 0
    if options.restart and is_chief:  # before it meets the others, who look for the folder then
        shutil.rmtree(folder, ignore_errors=True)
    if not _fit(config, options.runs, options.replicas):
        return INTERRUPTED
    if options.refit:
        from training.refit import refitted

        config = refitted(config, folder)
        folder = run_folder(options.runs, config)
        if not _fit(config, options.runs):
            return INTERRUPTED
    if not is_chief:
        return 0  # the chief tells the results
    _print_results(config, read_json(folder / RESULTS_FILE))
    print(f"\nRun: {folder}\nNext: python -m training {_next_command(config)} {folder}")
    return 0


def _next_command(config: RunConfig) -> str:
    return "evaluate" if config.task == WORD_VECTORS else "export"


def _within(config: RunConfig, options: argparse.Namespace) -> RunConfig:
    """`config` cut to --budget."""
    _refuse_lengths(options)
    require(
        not options.replicas and _place()[0] == 1,
        "--budget",
        "without --replicas and TF_CONFIG: it times one process on one device",
        options.budget,
    )
    use_threads(config)
    import_tensorflow()
    from training.budget import parse_seconds, within

    return within(config, parse_seconds(options.budget), options.runs).config


def _refuse_lengths(options: argparse.Namespace) -> None:
    for assignment in options.set:
        name = assignment.partition("=")[0].strip()
        if name in ("epochs", "max_updates"):
            raise ValueError(f"--set {name} cannot go with --budget, which is the run's length.")


def fit_auto(options: argparse.Namespace) -> int:
    """Tries recipes on the user's data within --budget and keeps the best; prints what it found."""
    _refuse(
        options,
        ("config", "restart", "dry_run", "overfit_one_batch", "stage", "updates", "replicas"),
        f"cannot go with {AUTO}, which trains several recipes of its own",
    )
    _refuse_lengths(options)
    import_tensorflow()
    from training.auto import fit_auto as try_all
    from training.budget import parse_seconds

    budget = parse_seconds(options.budget or "300s")
    base = changed(dataclasses.replace(recipe("sentiment"), name=AUTO), options)
    found = try_all(
        base.dataset,
        budget,
        options.runs,
        name=options.name or AUTO,
        change=lambda config: changed(config, options),
        refit=options.refit,
    )
    if found is None:
        print("Stopped. The same command goes on.", file=sys.stderr)
        return INTERRUPTED
    folder, tried = found
    print(f"\nOn the validation split, calibrated (--budget {budget:g}s):\n")
    rows = [
        [
            line["candidate"],
            line.get("updates", ""),
            line.get("seconds", ""),
            f"{line['accuracy']:.2%}",
            f"{line['loss']:.4f}",
            f"{line['weight']:.2f}" if line["weight"] else "",
        ]
        for line in tried
    ]
    _print_table(["candidate", "updates", "training s", "accuracy", "loss", "weight"], rows)
    results = read_json(folder / RESULTS_FILE)
    print(f"\nKept: {' + '.join(results['members'])}. On the test split:\n")
    _print_report(results["test"])
    print(f"\nRun: {folder}\nNext: python -m training export {folder}")
    return 0


def take_first_step(options: argparse.Namespace) -> int:
    """Runs a first step and prints its check; 1 when it fails."""
    only_set = (
        "budget",
        "config",
        "name",
        "restart",
        "dry_run",
        "overfit_one_batch",
        "stage",
        "updates",
        "refit",
    )
    _refuse(
        options,
        (*only_set, "data", "preset", *ABOUT_FILE),
        f"cannot go with {options.recipe}: a first step makes its own data, keeps nothing and ends "
        "with a check of its own. It takes --set alone",
    )
    step = override(FIRST_STEPS[options.recipe](), options.set)
    if step.name != options.recipe:
        raise ValueError(f"name says which first step runs: python -m training fit {step.name}")
    import_tensorflow()
    from training.first_steps import take

    print(f"{step.name}: {step.updates} updates by {step.strategy}, batch_size={step.batch_size}")
    try:
        findings = take(step, _print_loss)
    except KeyboardInterrupt:
        print("Stopped. Nothing of a first step is kept.", file=sys.stderr)
        return INTERRUPTED
    print()
    rows = [[f.quantity, f.known, f.found, "yes" if f.is_ok else "NO"] for f in findings]
    _print_table(["quantity", "known answer", "found", "ok"], rows)
    return 0 if all(f.is_ok for f in findings) else 1


def fit_evaluate_export(options: argparse.Namespace) -> int:
    configs = [changed(recipe(name), options) for name in options.recipes]
    for config in configs:
        if config.task == WORD_VECTORS:
            raise ValueError(NOT_SERVED.format(config.name))
    rows = []
    for config in configs:
        folder = run_folder(options.runs, config)
        if not _fit(config, options.runs):
            return INTERRUPTED
        export = _export_of(options.exports, config.name, folder.name)
        if export is None:
            import_tensorflow()
            from training.export import export_run

            export = export_run(folder, options.exports)
        results = read_json(folder / RESULTS_FILE)
        rows.append([config.name, *_headline(results["test"]), results["seconds"], export])
    print()
    _print_table(["recipe", "test figure", "", "training s", "export"], rows)
    return 0


def evaluate(options: argparse.Namespace) -> int:
    if options.data is None:
        _refuse_file_options(options, "--data")
    folder = find_run(options.runs, options.run)
    config = read_config(folder)
    import_tensorflow()
    from training.run import load_run, without_repeats

    learner: Any = load_run(folder)
    if config.task == WORD_VECTORS:
        return _evaluate_vectors(learner, folder, options)
    data = None
    if options.data is None:
        data = load_dataset(config.dataset, config.task, config.target)
        split: Any = data.test
        notes: Iterable[str] = ()
    elif config.task == CLASSIFICATION:
        split, notes = read_labelled(
            options.data,
            options.text_column,
            options.label_column,
            learner.label_names,
            target=config.target,
            separator=config.dataset.label_separator,
        )
    else:
        split, notes = read_documents(options.data, options.text_column)
    for note in notes:
        print(note, file=sys.stderr)
    if options.adapt:
        require(
            not (folder / ENSEMBLE_FILE).is_file(),
            "--adapt",
            "without an ensemble: give one of its members, runs themselves, in its place",
            str(folder),
        )
        from training.adaptation import adapted_table

        header, *rows = adapted_table(learner, split, folder, options.adapt)
        _print_table(header, rows)
        return 0
    report = learner.evaluate(split, folder)
    if data is not None:
        report |= without_repeats(learner, data)
    write_json(folder / "evaluation.json", {"data": str(options.data or "test"), "report": report})
    _print_report(report)
    pictures = {"confusion_matrix": "confusion_matrix.png", "calibration": "reliability.png"}
    written = ["evaluation.json", *(file for part, file in pictures.items() if part in report)]
    print(f"\nWritten to {', '.join(str(folder / file) for file in written)}")
    return 0


def _evaluate_vectors(learner: Any, folder: Path, options: argparse.Namespace) -> int:
    """On analogies: those of a file, or this project's own."""
    from training.vectors.analogies import read_questions
    from training.vectors.learner import VECTORS_FILE

    if options.adapt:
        raise ValueError("--adapt is for texts; word vectors answer analogies.")
    _refuse(options, ABOUT_FILE, "is for texts; word vectors answer the analogies of --data")
    questions = read_questions(options.data) if options.data else None
    test = load_dataset(learner.config.dataset, learner.config.task).test
    report = learner.evaluate(test, folder, questions)
    write_json(folder / "evaluation.json", {"data": str(options.data or "test"), "report": report})
    _print_report(report)
    print(f"\nWritten to {folder / 'evaluation.json'} and {folder / VECTORS_FILE}")
    return 0


def predict(options: argparse.Namespace) -> int:
    folder = find_run(options.runs, options.run)
    asked = {name: v for name in SAMPLING if (v := getattr(options, name)) is not None}
    if asked and read_config(folder).task != GENERATION:
        flags = ", ".join("--" + name.replace("_", "-") for name in asked)
        raise ValueError(f"{flags}: {folder.name} does not write texts.")
    texts = _texts(options)
    if read_config(folder).task == WORD_VECTORS:
        return _predict_neighbours(folder, texts, options.format)
    import_tensorflow()
    from training.run import load_run

    learner: Any = load_run(folder)
    if read_config(folder).task == CLASSIFICATION:
        columns = learner.answer(texts)
        answers = [
            {signatures.TEXT: text} | _judged(learner, {k: v[i] for k, v in columns.items()})
            for i, text in enumerate(texts)
        ]
    else:
        chosen = SAMPLING | asked
        _check_sampling(**chosen)
        answers = [
            {signatures.PROMPT: text, signatures.TEXT: learner.continue_text(text, **chosen)}
            for text in texts
        ]
    _WRITERS[options.format](answers)
    return 0


def _predict_neighbours(folder: Path, words: list[str], layout: str) -> int:
    """The nearest words of each, by the file that the run has written."""
    from training.vectors.analogies import nearest
    from training.vectors.files import read_vectors
    from training.vectors.learner import VECTORS_FILE

    if layout == "csv":
        raise ValueError("--format csv has a column for each label; of word vectors take jsonl.")
    vectors, _ = read_vectors(folder / VECTORS_FILE)
    for word in words:
        neighbours = nearest(vectors, word.strip(), 10)
        if layout == "jsonl":
            print(json.dumps({"word": word, "neighbours": neighbours}, ensure_ascii=False))
        else:
            print(f"{word}\t{_neighbours(neighbours)}")
    return 0


def _judged(learner: Any, row: dict[str, Any]) -> dict[str, Any]:
    """A row of `Classifier.answer` as it is written: plain values, scores by name."""
    if signatures.VALUE in row:
        return {signatures.VALUE: float(row[signatures.VALUE])}
    names, scores = learner.label_names, row[signatures.SCORES].tolist()
    answer: dict[str, Any] = {signatures.SCORES: dict(zip(names, scores, strict=True))}
    if signatures.IS_LABEL in row:
        said = row[signatures.IS_LABEL]
        return {
            signatures.LABELS: [n for n, is_label in zip(names, said, strict=True) if is_label]
        } | answer
    return {signatures.LABEL: row[signatures.LABEL].decode()} | answer


def export(options: argparse.Namespace) -> int:
    folder = find_run(options.runs, options.run)
    if (config := read_config(folder)).task == WORD_VECTORS:
        raise ValueError(NOT_SERVED.format(config.name))
    import_tensorflow()
    from training.export import export_run

    path = export_run(folder, options.exports, options.weights)
    print(f"Exported to {path}\nNext: python -m serving --exports {options.exports}")
    return 0


def check(options: argparse.Namespace) -> int:
    """Tells of repeats, leakage and contradictions in a data set, with examples."""
    if (options.name is None) == (options.data is None):
        raise ValueError(
            "check takes the name of a data set or of a recipe, or --data FILE, one of the two. "
            f"Data sets: {', '.join(DATASETS)}."
        )
    require(options.examples >= 0, "--examples", "0 or more", options.examples)
    if options.data:
        dataset, task = _file_of(options), CLASSIFICATION
    else:
        _refuse_file_options(options, "--data")
        known = DATASETS.get(options.name)
        config = None if known else recipe(options.name)
        dataset = config.dataset if config else DatasetConfig(name=options.name)
        task = config.task if config else DATASETS[options.name].task
    data = load_dataset(dataset, task)
    found = find_leakage(data)
    for line in (*data.notes, *found.lines(), *examples(data, found, options.examples)):
        print(line)
    return 0


def show_list(options: argparse.Namespace) -> int:
    def first_line(thing: Any) -> str:
        return (thing.__doc__ or "").strip().splitlines()[0]

    sections: dict[str, dict[str, str]] = {
        "First steps (python -m training fit NAME)": {
            n: first_line(f) for n, f in FIRST_STEPS.items()
        },
        "Recipes (python -m training fit NAME)": {n: first_line(f) for n, f in RECIPES.items()},
        "Models (--set model=NAME)": {n: first_line(c) for n, c in MODEL_CONFIGS.items()},
        "Tokenizers (--set tokenizer=NAME)": {
            n: first_line(c) for n, c in TOKENIZER_CONFIGS.items()
        },
        "Data sets (--set dataset.name=NAME)": {n: d.description for n, d in DATASETS.items()},
        "Optimizers (--set strategy=NAME)": {n: p.summary for n, p in OPTIMIZERS.items()},
        "Strategies (--set strategy='NAME(adamw)', nested as you like)": {
            n: p.summary for n, p in STRATEGIES.items()
        },
        "Single-step modes (--set batch_size=...)": {
            "full": "full-batch gradient descent: an update sees the whole training split",
            "32": "mini-batch gradient descent: so many examples an update",
            "1": "per-sample SGD: an update after every example",
        },
        "Schedules (--set optimizer.schedule='NAME(...)')": {
            n: schedule.description for n, schedule in SCHEDULES.items()
        },
        "Targets (--set target=NAME): what a text is labelled with": TARGETS,
        "Objectives of a stage": OBJECTIVES,
    }
    for title, entries in sections.items():
        print(title)
        width = max(map(len, entries))
        for name, text in entries.items():
            print(f"  {name:<{width}}  {text}")
        print()
    return 0


# How a generator writes when `predict` is not told otherwise.
SAMPLING: dict[str, Any] = {
    "max_tokens": 120,
    "temperature": 0.8,
    "top_k": 0,
    "top_p": 0.95,
    "seed": 0,
}

NOT_SERVED = (
    "{} trains word vectors, which are not served: fit writes them to vectors.txt in the run's "
    "folder. A classifier starts from them with --set vectors=FILE."
)

COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "fit": fit,
    "all": fit_evaluate_export,
    "evaluate": evaluate,
    "predict": predict,
    "export": export,
    "compare": compare,
    "search": search,
    "find-rate": find_rate,
    "check": check,
    "list": show_list,
    "plot-schedule": plot_schedule,
    "verify-resume": verify_resume,
}


def changed(config: RunConfig, options: argparse.Namespace) -> RunConfig:
    """`config` with the user's own file and settings in place of the recipe's."""
    if options.label_column and config.task != CLASSIFICATION:
        raise ValueError(f"--label-column: {config.name} learns from texts alone.")
    if options.data:
        config = dataclasses.replace(config, dataset=_file_of(options))
    else:
        _refuse_file_options(options, "--data")
    if options.preset:
        config = fine_tuned(config, options.preset)
    return by_device(
        config,
        options.set,
        is_new=getattr(options, "config", None) is None,  # what is read back is as it was decided
        num_replicas=getattr(options, "replicas", None),
    )


def _file_of(options: argparse.Namespace) -> DatasetConfig:
    return DatasetConfig(
        name=USER_FILE,
        path=options.data,
        text_column=options.text_column,
        label_column=options.label_column,
        validation_path=options.validation_data,
        test_path=options.test_data,
    )


ABOUT_FILE = ("text_column", "label_column", "validation_data", "test_data")


def _refuse_file_options(options: argparse.Namespace, wanted: str) -> None:
    """Raises ValueError for options that describe a file of the user's, as none was given."""
    _refuse(options, ABOUT_FILE, f"needs {wanted} FILE: it says how to read your own file")


def _refuse(options: argparse.Namespace, names: Iterable[str], reason: str) -> None:
    """Raises ValueError with the reason if any of the options was given."""
    values = {name: getattr(options, name, None) for name in names}
    given = [name for name, value in values.items() if value is not None and value is not False]
    if given:
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ValueError(f"{flags} {reason}.")


def _dry_run(config: RunConfig, runs: Path) -> int:
    import_tensorflow()
    from training.checks import dry_run

    for line in dry_run(config, runs):
        print(line, flush=True)
    return 0


def _overfit_one_batch(config: RunConfig, options: argparse.Namespace) -> int:
    import_tensorflow()
    from training.checks import NEAR_ZERO, overfit_one_batch

    num_updates = 200 if options.updates is None else options.updates
    found = overfit_one_batch(
        config, stage_name=options.stage, num_updates=num_updates, report=_print_loss
    )
    print(
        f"\n{options.stage or config.name}: the loss of one batch went from {found.first:.4f} to "
        f"{found.last:.4f}, {found.ratio:.1%} of it, in {found.updates} updates."
    )
    tell_initial_weights(config, options.stage or config.name)
    if found.is_near_zero:
        print("It goes to 0: data, network and strategy can learn.")
        return 0
    print(
        f"That is not near 0 ({NEAR_ZERO:.0%} or less). If it was still falling, allow more with "
        f"--updates {2 * num_updates}; if not, look at optimizer.peak_learning_rate, at trainable, "
        "and at the labels of the data."
    )
    return 1


def _print_loss(update: int, loss: float) -> None:
    print(f"update {update:>6,}   loss {loss:.4f}", flush=True)


def _place() -> tuple[int, int]:
    """How many processes TF_CONFIG names, and which of them this one is."""
    if not os.environ.get("TF_CONFIG"):
        return 1, 0
    import_tensorflow()
    from training.strategies.processes import place

    return place(os.environ)


def _fit(config: RunConfig, runs: Path, num_replicas: int | None = None) -> bool:
    """Trains unless it is done already; False when interrupted."""
    folder, replicas = run_folder(runs, config), None
    if _place()[0] > 1:  # meets the others first: all have to find the folder as it is then
        from training.devices import choose_replicas

        replicas = choose_replicas(config, num_replicas)
    if (folder / RESULTS_FILE).is_file():
        print(f"{config.name}: trained already in {folder}", file=sys.stderr)
        return True
    use_threads(config)
    import_tensorflow()
    from training.devices import choose_replicas
    from training.run import fit_run

    replicas = replicas or choose_replicas(config, num_replicas)
    _, outcome = fit_run(config, runs, replicas=replicas)
    if outcome.reason == "interrupted":
        print(
            f"Stopped at update {outcome.step}, saved in {folder}. The same command goes on.",
            file=sys.stderr,
        )
        return False
    return True


def _export_of(exports: Path, name: str, run: str) -> Path | None:
    """The newest version of `name`, if it was made from `run`."""
    newest = newest_export(exports, name)
    if newest is None or not (newest / signatures.MANIFEST_FILE).is_file():
        return None
    return newest if read_json(newest / signatures.MANIFEST_FILE)["run"] == run else None


def _check_sampling(
    *, max_tokens: int, temperature: float, top_k: int, top_p: float, seed: int
) -> None:
    require(0 <= max_tokens < 2**31, "--max-tokens", "from 0 to 2147483647", max_tokens)
    require(0 <= temperature < math.inf, "--temperature", "0 or more", temperature)
    require(0 <= top_k < 2**31, "--top-k", "0 or more", top_k)
    require(0 < top_p <= 1, "--top-p", "above 0 and at most 1", top_p)
    require(0 <= seed < 2**31, "--seed", "from 0 to 2147483647", seed)


def _texts(options: argparse.Namespace) -> list[str]:
    if options.file and options.texts:
        raise ValueError("predict takes texts or --file, not both.")
    if options.file is None:
        _refuse_file_options(options, "--file")
    else:
        texts, notes = read_texts(options.file, options.text_column)
        for note in notes:
            print(note, file=sys.stderr)
        return texts
    if options.texts:
        return list(options.texts)
    if sys.stdin.isatty():
        print("One text a line; end with Ctrl-D.", file=sys.stderr)
    texts = [line.rstrip("\r\n") for line in sys.stdin]
    if not texts:
        raise ValueError("No text: give texts as arguments, with --file, or on standard input.")
    return texts


def _write_lines(answers: list[dict]) -> None:
    for answer in answers:
        if signatures.PROMPT in answer:
            print(answer[signatures.PROMPT] + answer[signatures.TEXT], end="\n\n")
            continue
        text = " ".join(answer[signatures.TEXT].split())
        if signatures.VALUE in answer:
            print(f"{answer[signatures.VALUE]:.6g}\t{text}")
        elif signatures.LABELS in answer:
            print(f"{', '.join(answer[signatures.LABELS])}\t{text}")
        else:
            label = answer[signatures.LABEL]
            print(f"{label}\t{answer[signatures.SCORES][label]:.4f}\t{text}")


def _write_csv(answers: list[dict]) -> None:
    flat = [
        {
            k: "|".join(v) if k == signatures.LABELS else v
            for k, v in answer.items()
            if k != signatures.SCORES
        }
        | {f"score_{k}": f"{v:.6f}" for k, v in answer.get(signatures.SCORES, {}).items()}
        for answer in answers
    ]
    writer = csv.DictWriter(sys.stdout, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)


def _write_jsonl(answers: list[dict]) -> None:
    for answer in answers:
        print(json.dumps(answer, ensure_ascii=False))


_WRITERS = {"lines": _write_lines, "csv": _write_csv, "jsonl": _write_jsonl}


def _neighbours(cosines: dict[str, float]) -> str:
    return "  ".join(f"{word} {cosine:.2f}" for word, cosine in cosines.items())


def _headline(report: dict) -> list[str]:
    if "analogies" in report:
        found = report["analogies"]
        share = found["num_correct"] / max(found["num_covered"], 1)
        return [
            f"analogies {share:.1%} right",
            f"{found['num_covered']:,} of {found['num_questions']:,} answerable",
        ]
    if "quadratic_kappa" in report:
        off = report["mean_absolute_error"]
        return [f"accuracy {report['accuracy']:.2%}", f"mean absolute error {off:.4f}"]
    if "micro_f1" in report:
        return [f"micro F1 {report['micro_f1']:.4f}", f"macro F1 {report['macro_f1']:.4f}"]
    if "rmse" in report:
        return [f"RMSE {report['rmse']:.4g}", f"R2 {report['r2']:.4f}"]
    if "macro_f1" in report:
        return [f"accuracy {report['accuracy']:.2%}", f"macro F1 {report['macro_f1']:.4f}"]
    return [
        f"{report['bits_per_character']:.3f} bits/character",
        f"perplexity {report['perplexity']:.1f}",
    ]


def _print_results(config: RunConfig, results: dict) -> None:
    kept = results.get("kept_step", results["best_step"])  # of runs before it was written: best
    print(
        f"\n{config.name}: {results['steps']} updates in {results['seconds']} s "
        f"({results['ended']}); kept: update {kept} of stage {config.name}. On the test split:\n"
    )
    _print_report(results["test"])


# Figures of a target besides its headline, as they are called.
_MORE_FIGURES = {
    "exact_match": "exact match",
    "quadratic_kappa": "quadratic kappa",
    "mean_absolute_error": "mean absolute error",
    "pearson": "Pearson",
    "spearman": "Spearman",
}


def _print_calibration(*, temperature: float, before: dict, after: dict) -> None:
    def words(figures: dict) -> str:
        return (
            f"ECE {figures['ece']:.4f}, adaptive {figures['adaptive_ece']:.4f}, "
            f"loss {figures['loss']:.4f}"
        )

    line = f"scores as trained: {words(before)}"
    if temperature != 1.0:
        line += f"; as served, at temperature {temperature:.3f}: {words(after)}"
    print(line)


def _print_report(report: dict) -> None:
    more = [
        f"{words} {report[name]:.4g}"
        for name, words in _MORE_FIGURES.items()
        if name in report and words not in "".join(_headline(report))
    ]
    print(f"loss {report['loss']:.4f}   " + "   ".join([*_headline(report), *more]))
    if "calibration" in report:
        _print_calibration(**report["calibration"])
    if unseen := report.get("without_repeats"):
        print(
            f"without the texts that training has too: accuracy {unseen['accuracy']:.2%} of "
            f"{unseen['num_examples']:,}"
        )
    if "by_label" in report:
        print()
        rows = [
            [name, *(f"{row[key]:.4f}" for key in ("precision", "recall", "f1"))]
            + [row["num_examples"]]
            for name, row in report["by_label"].items()
        ]
        _print_table(["label", "precision", "recall", "f1", "examples"], rows)
    if "analogies" in report:
        print()
        names = ("num_questions", "num_covered", "num_correct")
        by_section = report["analogies"]["by_section"]
        rows = [[name, *(row[key] for key in names)] for name, row in by_section.items()]
        _print_table(["analogies", "questions", "known", "right"], rows)
        print()
        near = [[word, _neighbours(cosines)] for word, cosines in report["neighbours"].items()]
        _print_table(["word", "nearest, by cosine"], near)
    for sample in report.get("samples", ()):
        print(f"\n[{sample['prompt']}]{sample['text']}")


def _print_table(header: list[str], rows: list[list]) -> None:
    cells = [header, *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for row in cells:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(line.rstrip())
