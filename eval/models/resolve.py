"""From the words after --models to models: exports, runs, timm names, official weights, floors.

A candidate is loaded when its turn comes and dropped after it, so that RUN@all needs the memory of one model. What a
word names is looked up at once: mistakes show before the work.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from eval.models.exports import Export, read_export
from eval.models.floors import floor_model
from eval.models.model import Model, export_model, random_init_of_export, random_init_of_timm, timm_model
from eval.models.names import short_names
from eval.models.official import official_export
from eval.models.record import Record, read_record
from eval.models.runs import find_exports
from eval.models.training import Training, TrainingLog, read_training_log
from shards.errors import UserError

_FREE_FLOORS = ("floor:image_stats", "floor:random_conv")
_KINDS = ("timm:", "floor:", "official:")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model that can be loaded."""

    name: str
    """As the report calls it; unique within a report."""
    bands: tuple[str, ...] | None
    """Bands it takes, in order; None: whatever the data have."""
    dtype: str | None
    """Type of the images it takes; None: any."""
    load: Callable[[], Model]
    """Build it; raises UserError if its weights are damaged."""
    words: tuple[str, ...] = ()
    """What named it among the words after --models."""
    is_floor: bool = False
    run: str | None = None
    """URL of the run that exported it; `step` and `samples_seen` say when."""
    run_name: str | None = None
    """What the report calls the run: the end of its URL that tells it from others; None without a run."""
    step: int | None = None
    samples_seen: int | None = None
    training: Training | None = None
    """What training had cost by then; None where nobody says so."""
    record: Record | None = None
    """What its run was made from; None where nobody says so."""
    may_fail: bool = False
    """One of many exports: if it cannot be loaded it is passed over and told, as a damaged export of a run is."""


def resolve_models(
    words: Sequence[str], add_floors: bool, device: torch.device, tell: Callable[[str], None]
) -> list[Candidate]:
    """Find every model, the floors last, each once.

    Args:
        words: export folders, runs, RUN@all, RUN@STEP, timm:NAME, official:FILE.pth, floor:NAME.
        add_floors: whether to add the floors that the words lack.
        device: where networks run.
        tell: is given a line for each export of a run that was passed over as invalid.

    Raises:
        UserError: a word names nothing that can be loaded, or a run's metrics or record are damaged.
    """
    words = list(dict.fromkeys(words))
    exports: dict[str, list[Export]] = {}
    for word in words:
        if not word.startswith(_KINDS):
            exports[word], faults = find_exports(word)
            for fault in faults:
                tell(f"passed over: {fault}")
    if add_floors:
        words += [floor for floor in _default_floors(words, bool(exports)) if floor not in words]
    first = next((found[-1] for found in exports.values()), None)
    runs = dict.fromkeys(e.run for found in exports.values() for e in found if e.run is not None)
    told = {run: (read_training_log(run), read_record(run)) for run in runs}
    origins = short_names(e.origin for found in exports.values() for e in found)
    named: dict[str, Candidate] = {}
    for word in words:
        if word in exports:
            lazy = len(exports[word]) > 1
            found = {
                e.url: export_candidate(
                    e, device, *told.get(e.run or "", (None, None)), origin=origins[e.origin], lazy=lazy
                )
                for e in exports[word]
            }
        else:
            found = {word: _eager(_load(word, first, device))}
        # RUN and RUN@STEP may be the same export.
        for place, candidate in found.items():
            before = named[place].words if place in named else ()
            named[place] = replace(candidate, words=(*before, word))
    return _with_unique_names(sorted(named.items(), key=lambda item: item[1].is_floor))


def candidate_of(word: str, candidates: Sequence[Candidate]) -> Candidate:
    """Return the model that one of the words after --models names, the last one of RUN@all."""
    return [candidate for candidate in candidates if word in candidate.words][-1]


def _default_floors(words: Sequence[str], any_export: bool) -> list[str]:
    has_random_init = any(word.startswith("floor:random_init") for word in words)
    return ["floor:random_init"] * (any_export and not has_random_init) + list(_FREE_FLOORS)


def export_candidate(
    export: Export, device: torch.device, log: TrainingLog | None, record: Record | None, *, origin: str, lazy: bool
) -> Candidate:
    """Return the candidate of an export; a lazy one reads its weights when it is loaded, and holds none.

    Args:
        export: of a run, or one that stands alone.
        device: where the network runs.
        log: the metrics of its run; None: there are none.
        record: what its run was made from; None: nothing says so.
        origin: what the report calls its run, or its folder where it stands alone.
        lazy: see above.
    """
    if lazy:
        load = lambda: export_model(read_export(export.url), device)  # noqa: E731
    else:
        model = export_model(export, device)
        load = lambda: model  # noqa: E731
    return Candidate(
        name=export.label_in(origin), bands=export.bands, dtype=export.dtype, load=load,
        run=export.run, run_name=None if export.run is None else origin,
        step=export.step, samples_seen=export.samples_seen,
        training=None if log is None else log.until(export.step), record=record, may_fail=lazy,
    )  # fmt: skip


def _eager(model: Model) -> Candidate:
    return Candidate(
        name=model.name, bands=model.bands, dtype=model.dtype, load=lambda: model, is_floor=model.kind == "floor"
    )


def _load(word: str, first: Export | None, device: torch.device) -> Model:
    kind, _, name = word.partition(":")
    if kind == "timm":
        return timm_model(name, device)
    if kind == "official":
        export = official_export(name)
        return replace(export_model(export, device), name=f"official {export.label}")
    if name.startswith("random_init="):
        return random_init_of_timm(name.partition("=")[2], device)
    if name == "random_init":
        if first is None:
            raise UserError(
                "floor:random_init takes its architecture from an export and --models has none: "
                "add one, or name a timm architecture, as in floor:random_init=vit_small_patch16_224"
            )
        return random_init_of_export(first, device)
    return floor_model(name)


def _with_unique_names(named: Sequence[tuple[str, Candidate]]) -> list[Candidate]:
    """Name candidates alike by the words or URLs that they come from."""
    names = [candidate.name for _, candidate in named]
    return [
        replace(candidate, name=word) if names.count(candidate.name) > 1 else candidate for word, candidate in named
    ]
