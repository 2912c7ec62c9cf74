"""The evaluation as a whole: models × data sets × protocols → rows → report."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from rich.console import Console

from eval.config import EvalConfig
from eval.data import ClassFolders, open_class_folders, parse_specs
from eval.environment import describe_hardware, describe_versions
from eval.features import FeatureTable, check_compatible, features_of
from eval.models import Model
from eval.protocols import PROTOCOLS, Outcome, Protocol, make_task
from eval.resolve import resolve_models
from eval.results import Results, Row
from eval.split import TEST, Split, stratified_split
from eval.statistics import bootstrap_interval
from eval.summary import compare_all, confusions, sentences
from shards import storage
from shards.errors import UserError
from shards.keyed import generator
from shards.progress import Progress

_TASK, _METRIC = "scene classification", "accuracy"


@dataclass(frozen=True)
class _Prepared:
    """A data set with its split."""

    data: ClassFolders
    split: Split


def evaluate(config: EvalConfig, command: str, console: Console) -> dict[str, Any]:
    """Evaluate all models on all data sets and return the report as JSON-able figures.

    Rows go to OUT/results.parquet as they are made; rows that are there already are not computed again.

    Raises:
        UserError: anything in --models, --data or --out that cannot be used; before anything is written where
            that can be known before.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no usable GPU; use --device cpu")
    started = time.time()
    specs = parse_specs(config.data)
    models = resolve_models(config.models, config.floors, _device(config), console.print)
    prepared = [_prepare(name, url, config) for name, url in specs.items()]
    for item in prepared:
        for model in models:
            check_compatible(model, item.data)
    _open_out(config, prepared)
    results, rows, costs, truth, rejected = Results(config.out), [], [], {}, {}
    for item in prepared:
        for model in models:
            table = _features(model, item.data, config)
            costs.append({"model": model.name, "data": item.data.name, "images_per_s": table.images_per_s})
            truth[item.data.name], rejected[item.data.name] = _test_labels(item, table), table.rejected
            for row in _rows(model, item, table, config, results):
                rows.append(row)
                console.print(f"  {row.protocol:16} {row.features:10} {_percent(row)}", highlight=False)
    floors = {model.name for model in models if model.kind == "floor"}
    comparisons = compare_all(rows, truth, floors)
    classes = {item.data.name: item.data.classes for item in prepared}
    return {
        "format": "pera-eval",
        "format_version": 1,
        "command": command,
        "config": asdict(config),
        "hardware": describe_hardware(_device(config)),
        "versions": describe_versions(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": time.time() - started,
        "models": [_describe_model(model) for model in models],
        "data": [_describe_data(item, rejected[item.data.name]) for item in prepared],
        "rows": [row.figures() for row in rows],
        "comparisons": [comparison.figures() for comparison in comparisons],
        "verdicts": sentences(comparisons),
        "confusions": [confusion.figures() for confusion in confusions(rows, truth, classes, floors)],
        "costs": costs,
    }


def _device(config: EvalConfig) -> torch.device:
    return torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")


def _prepare(name: str, url: str, config: EvalConfig) -> _Prepared:
    data = open_class_folders(name, url, config.workers)
    split = stratified_split(
        data.paths, data.labels, seed=config.seed,
        test_share=config.test_share, validation_share=config.validation_share,
    )  # fmt: skip
    return _Prepared(data, split)


def _open_out(config: EvalConfig, prepared: list[_Prepared]) -> None:
    """Write the resolved config and the splits: an unusable --out shows before the work."""
    try:
        with storage.user_errors(config.out):
            text = yaml.safe_dump(asdict(config), sort_keys=False)
            storage.write_bytes(storage.join(config.out, "config.yaml"), text.encode())
            for item in prepared:
                storage.write_bytes(storage.join(config.out, "splits", f"{item.data.name}.tsv"), item.split.table)
    except FileExistsError as error:
        raise UserError(f"--out {config.out} is a file: give a folder") from error


def _features(model: Model, data: ClassFolders, config: EvalConfig) -> FeatureTable:
    done = 0
    with Progress(f"{model.name} on {data.name}", len(data.paths), "images") as progress:

        def advance(num_images: int) -> None:
            nonlocal done
            done += num_images
            progress.update(done)

        return features_of(
            model, data, config.out,
            batch_size=config.batch_size, workers=config.workers, redo=config.redo, advance=advance,
        )  # fmt: skip


def _test_labels(item: _Prepared, table: FeatureTable) -> NDArray[np.int64]:
    kept = table.index[item.split.parts[table.index] == TEST]
    labels: NDArray[np.int64] = item.data.labels[kept]
    return labels


def _rows(model: Model, item: _Prepared, table: FeatureTable, config: EvalConfig, results: Results) -> Iterator[Row]:
    """Yield every protocol's rows for every kind of features, computing what `results` lacks."""
    labels, parts = item.data.labels[table.index], item.split.parts[table.index]
    _check_parts(item, labels, parts)
    for features, values in table.values.items():
        task = make_task(values, labels, parts, standardise=model.standardise)
        for protocol in PROTOCOLS:
            known = [] if config.redo else _known(results, model, item, features, protocol, config)
            if len(known) == len(protocol.titles):
                yield from known
                continue
            started = time.perf_counter()
            outcomes = protocol.run(task)
            seconds = time.perf_counter() - started
            for name, outcome in outcomes.items():
                row = _row(model, item, features, name, outcome, labels, parts, config, seconds)
                results.append(row)
                yield row


def _check_parts(item: _Prepared, labels: NDArray[np.int64], parts: NDArray[np.int64]) -> None:
    """Raise if unreadable images left a class without training or test images."""
    for label, name in enumerate(item.data.classes):
        mine = parts[labels == label]
        if not (mine == TEST).any() or not (mine != TEST).any():
            raise UserError(f"class {name!r} of {item.data.name} lost all training or test images to damage: mend them")


def _known(
    results: Results, model: Model, item: _Prepared, features: str, protocol: Protocol, config: EvalConfig
) -> list[Row]:
    keys = [(item.data.name, item.data.digest, item.split.digest, model.name, model.digest, name, features,
             config.num_draws, config.seed) for name in protocol.titles]  # fmt: skip
    return [row for row in map(results.get, keys) if row is not None]


def _row(
    model: Model, item: _Prepared, features: str, protocol: str, outcome: Outcome,
    labels: NDArray[np.int64], parts: NDArray[np.int64], config: EvalConfig, seconds: float,
) -> Row:  # fmt: skip
    scores = (outcome.predictions == labels[parts == TEST]).astype(np.float64)
    draw = generator("bootstrap", config.seed, item.data.name, model.name, protocol, features)
    interval = bootstrap_interval(scores, config.num_draws, draw)
    return Row(
        task=_TASK, data=item.data.name, data_digest=item.data.digest, split_digest=item.split.digest,
        model=model.name, model_digest=model.digest, protocol=protocol, features=features, metric=_METRIC,
        value=interval.value, low=interval.low, high=interval.high,
        num_train=int((parts != TEST).sum()), num_test=len(scores), num_draws=config.num_draws, seed=config.seed,
        seconds=seconds, detail=outcome.detail, predictions=outcome.predictions,
    )  # fmt: skip


def _percent(row: Row) -> str:
    return f"{100 * row.value:5.1f} % ({100 * row.low:.1f} … {100 * row.high:.1f})"


def _describe_model(model: Model) -> dict[str, Any]:
    names = ("name", "kind", "digest", "description", "image_px", "bands", "dtype")
    return {name: getattr(model, name) for name in names}


def _describe_data(item: _Prepared, rejected: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    data = item.data
    return {
        "name": data.name, "url": data.url, "digest": data.digest, "split_digest": item.split.digest,
        "classes": list(data.classes), "num_images": len(data.paths), "bands": list(data.bands), "dtype": data.dtype,
        "rejected": [{"path": path, "reason": reason} for path, reason in rejected],
    }  # fmt: skip
