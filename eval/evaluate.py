"""The evaluation as a whole: models × data sets × protocols → rows → report.

One model is in memory at a time, and one data set's features. What a model costs is the extraction of its features;
protocols run on what is cached. Rows go to OUT/results.parquet as they are made; rows there are not computed again.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from eval.config import EvalConfig
from eval.data.split import TEST
from eval.environment import describe_hardware, describe_versions
from eval.features import check_compatible
from eval.models.model import Model
from eval.models.resolve import Candidate, candidate_of, resolve_models
from eval.normalisation import Normalisation
from eval.pictures import Pictures, Stored, pictures_of, pictures_of_patches, spread
from eval.prepared import Prepared, open_out, prepare
from eval.protocols.task import Outcome
from eval.questions import Question, Questions, detail_of, questions
from eval.report.pictures import PCA
from eval.results import Results, Row
from eval.seeds import method_sentences, over_seeds
from eval.statistics import bootstrap_interval
from eval.summary import chosen_rows, compare_all, confusions, sentences
from shards.errors import UserError
from shards.keyed import generator

_TASKS = {"classes": "scene classification", "masks": "semantic segmentation", "changes": "change detection"}
_RETRIEVAL = "retrieval"
_NUM_PCA = 3


def evaluate(config: EvalConfig, command: str, console: Console) -> dict[str, Any]:
    """Evaluate all models on all data sets and return the report as JSON-able figures.

    Raises:
        UserError: anything in --models, --data or --out that cannot be used; before anything is written where
            that can be known before.
    """
    evaluation = Evaluation(config, command, console)
    evaluation.run()
    return evaluation.report()


class Evaluation:
    """An evaluation that takes one model after the other and can report at any time."""

    def __init__(self, config: EvalConfig, command: str, console: Console) -> None:
        if config.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: this machine has no usable GPU; use --device cpu")
        self.config, self._command, self._console = config, command, console
        self._started = time.time()
        self.device = torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")
        self.prepared = prepare(config)
        self.candidates = resolve_models(
            config.models, config.floors, self.device, partial(console.print, markup=False)
        )
        if config.watch and all(candidate.run is None for candidate in self.candidates):
            raise UserError("--watch needs a run among --models, a folder with exports/step_*: none of them is one")
        self._baseline = None if config.baseline is None else candidate_of(config.baseline, self.candidates).name
        for candidate in self.candidates:
            self.check(candidate)
        open_out(config, self.prepared)
        self._results, self._stored = Results(config.out), Pictures(config.out)
        self._done: dict[str, Candidate] = {}
        self._models: dict[str, dict[str, Any]] = {}
        self._rows: dict[str, list[Row]] = {}
        self._costs: list[dict[str, Any]] = []
        self._pictures: dict[tuple[str, ...], list[Stored]] = {}
        self._truth: dict[str, NDArray[np.int64]] = {}
        self._rejected: dict[str, tuple[tuple[str, str], ...]] = {}
        self._num_incomplete: dict[str, int] = {}
        self._normalisation = Normalisation(config, self.device)

    def run(self) -> None:
        """Evaluate all models that --models names; raises as `add`."""
        for candidate in self.candidates:
            self.add(candidate)

    def check(self, candidate: Candidate) -> None:
        """Raise UserError if a model cannot take one of the data sets."""
        for item in self.prepared:
            check_compatible(candidate, item.data)

    def add(self, candidate: Candidate) -> None:
        """Evaluate a model on every data set; of many exports one that is damaged is passed over and told.

        Raises:
            UserError: the model is damaged or unusable and the only one or the baseline, or too many images are
                unreadable.
        """
        try:
            loaded = replace(candidate.load(), name=candidate.name)
        except UserError as error:
            if not candidate.may_fail or candidate.name == self._baseline:
                raise
            self._console.print(f"passed over: {error}", markup=False)
            return
        rows = []
        for item in self.prepared:
            model = self._normalisation.of(loaded, item)
            with questions(model, item, self.config, self.device) as found:
                self._costs.append({"model": model.name, "data": item.data.name, **asdict(found.cost)})
                self._rejected[item.data.name] = found.rejected
                self._num_incomplete[item.data.name] = found.num_incomplete
                if found.labels is not None:
                    self._truth[item.data.name] = found.labels[found.parts == TEST]
                for question in found.asked:
                    rows += self._answers(candidate, model, item, found, question)
                self._see_patches(candidate, model, item, found)
        self._done[candidate.name], self._rows[candidate.name] = candidate, rows
        self._models[candidate.name] = _describe_model(candidate, loaded)

    def _answers(
        self, candidate: Candidate, model: Model, item: Prepared, found: Questions, question: Question
    ) -> list[Row]:
        """Return the rows of a question, from the results where they are there."""
        keys = [self._key(model, item, name, question.features) for name in question.protocol.titles]
        known = [] if self.config.redo else [row for row in map(self._results.get, keys) if row is not None]
        # The run may have been moved since.
        rows = [replace(row, run=candidate.run) for row in known]
        if not rows:
            started = time.perf_counter()
            answers = question.answer()
            seconds = time.perf_counter() - started
            outcomes = {name: _placed(outcome, item, found) for name, outcome in answers.items()}
            rows = [
                self._row(candidate, model, item, found, question.features, name, outcome, seconds)
                for name, outcome in outcomes.items()
            ]
            for name, outcome in outcomes.items():
                pictures = pictures_of(item.data, outcome)
                if pictures:
                    key = self._picture_key(model, item, question.features)
                    self._stored.put(pictures, item.data.name, model.name, name, *key)
            self._results.append(rows)
        for row in rows:
            self._console.print(f"  {row.protocol:24} {row.features:10} {_percent(row)}", highlight=False)
            self._pictures[row.data, row.model, row.protocol, row.features] = (
                self._stored.get(row.protocol, *self._picture_key(model, item, row.features)) or []
            )
        return rows

    def _key(self, model: Model, item: Prepared, protocol: str, features: str) -> tuple[Any, ...]:
        return (item.data.name, item.data.digest, item.split.digest, model.name, model.digest,
                self._normalisation.name(model), protocol, features,
                self.config.num_draws, self.config.seed)  # fmt: skip

    def _picture_key(self, model: Model, item: Prepared, features: str) -> tuple[Any, ...]:
        return (item.data.name, item.data.digest, item.split.digest, model.name, model.digest, features,
                self.config.seed)  # fmt: skip

    def _row(
        self, candidate: Candidate, model: Model, item: Prepared, found: Questions, features: str, protocol: str,
        outcome: Outcome, seconds: float,
    ) -> Row:  # fmt: skip
        draw = generator("bootstrap", self.config.seed, item.data.name, model.name, protocol, features)
        interval = bootstrap_interval(outcome.evidence, self.config.num_draws, draw)
        return Row(
            task=_RETRIEVAL if protocol.startswith(_RETRIEVAL) else _TASKS[item.data.kind],
            data=item.data.name, data_digest=item.data.digest, split_digest=item.split.digest,
            model=model.name, model_digest=model.digest, normalisation=self._normalisation.name(model),
            run=candidate.run, step=candidate.step, samples_seen=candidate.samples_seen,
            protocol=protocol, features=features, metric=outcome.metric,
            value=interval.value, low=interval.low, high=interval.high,
            num_train=int((found.parts != TEST).sum()), num_test=outcome.evidence.num_images,
            num_draws=self.config.num_draws, seed=self.config.seed, seconds=seconds,
            detail=detail_of(outcome, item, found), predictions=outcome.predictions, evidence=outcome.evidence,
        )  # fmt: skip

    def _see_patches(self, candidate: Candidate, model: Model, item: Prepared, found: Questions) -> None:
        """Add pictures of patch features of a few test images; floors have no features worth seeing."""
        if candidate.is_floor:
            return
        key = self._picture_key(model, item, PCA)
        stored = None if self.config.redo else self._stored.get(PCA, *key)
        if stored is None:
            places = spread(found.index[found.parts == TEST], _NUM_PCA)
            self._stored.put(pictures_of_patches(model, item.data, places), item.data.name, model.name, PCA, *key)
            stored = self._stored.get(PCA, *key)
        self._pictures[item.data.name, model.name, PCA, ""] = stored or []

    def report(self) -> dict[str, Any]:
        """Return the report on the models so far, JSON-able."""
        done = _in_order(list(self._done.values()))
        rows = [row for candidate in done for row in self._rows[candidate.name]]
        chosen = chosen_rows(rows)
        chosen_keys = {(row.data, row.model, row.protocol, row.features) for row in chosen}
        floors = {candidate.name for candidate in done if candidate.is_floor}
        runs = {candidate.name: candidate.run for candidate in done if candidate.run is not None}
        records = {candidate.name: candidate.record for candidate in done if candidate.record is not None}
        seeds = over_seeds(rows, runs, records, self._baseline)
        comparisons = compare_all(rows, floors, runs, self._baseline)
        classes = {item.data.name: item.data.classes for item in self.prepared}
        return {
            "format": "pera-eval",
            "format_version": 2,
            "command": self._command,
            "config": asdict(self.config),
            "hardware": describe_hardware(self.device),
            "versions": describe_versions(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._started)),
            "seconds": time.time() - self._started,
            "models": [self._models[candidate.name] for candidate in done],
            "baseline": self._baseline,
            "data": [
                item.figures(self._rejected.get(item.data.name, ()), self._num_incomplete.get(item.data.name, 0))
                | self._normalisation.figures(item)
                for item in self.prepared
            ],
            "rows": [row.figures() | {"chosen": _place_of(row) in chosen_keys} for row in rows],
            "comparisons": [comparison.figures() for comparison in comparisons],
            "seeds": [figure.figures() for figure in seeds],
            "verdicts": [*method_sentences(seeds), *sentences(comparisons)],
            "confusions": [confusion.figures() for confusion in confusions(rows, self._truth, classes, floors)],
            "costs": self._costs,
            "pictures": [
                picture
                for place, pictures in self._pictures.items()
                if place in chosen_keys or place[2] == PCA
                for picture in pictures
            ],
        }


def _placed(outcome: Outcome, item: Prepared, found: Questions) -> Outcome:
    """Tell an outcome's evidence which of its test images lie in one place, where the split keeps places whole."""
    if item.split.places is None:
        return outcome
    _, places = np.unique([item.split.places[place] for place in found.index[found.parts == TEST]], return_inverse=True)
    return replace(outcome, evidence=replace(outcome.evidence, places=places))


def _place_of(row: Row) -> tuple[str, str, str, str]:
    return row.data, row.model, row.protocol, row.features


def _in_order(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return models as they came, exports of one run together by step, floors last."""
    runs = list(dict.fromkeys(candidate.run or candidate.name for candidate in candidates))
    return sorted(candidates, key=lambda c: (c.is_floor, runs.index(c.run or c.name), c.step or 0))


def _percent(row: Row) -> str:
    return f"{100 * row.value:5.1f} % ({100 * row.low:.1f} … {100 * row.high:.1f})"


def _describe_model(candidate: Candidate, model: Model) -> dict[str, Any]:
    names = ("name", "kind", "digest", "description", "image_px", "patch_px", "bands", "dtype", "mean", "std")
    origin = {name: getattr(candidate, name) for name in ("run", "run_name", "step", "samples_seen")}
    training = None if candidate.training is None else asdict(candidate.training)
    record = None if candidate.record is None else asdict(candidate.record)
    return {name: getattr(model, name) for name in names} | origin | {"training": training, "record": record}
