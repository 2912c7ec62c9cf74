"""From the words after --models to models: exports, runs, timm names, floors."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from eval.exports import Export, find_export
from eval.floors import floor_model
from eval.models import Model, export_model, random_init_of_export, random_init_of_timm, timm_model
from shards.errors import UserError

_FREE_FLOORS = ("floor:image_stats", "floor:random_conv")


def resolve_models(
    words: Sequence[str], add_floors: bool, device: torch.device, tell: Callable[[str], None]
) -> list[Model]:
    """Load every model, the floors last, each once.

    Args:
        words: export folders, runs, timm:NAME, floor:NAME.
        add_floors: whether to add the floors that the words lack.
        device: where networks run.
        tell: is given a line for each export of a run that was passed over as invalid.

    Raises:
        UserError: a word names nothing that can be loaded.
    """
    words = list(dict.fromkeys(words))
    exports: dict[str, Export] = {}
    for word in words:
        if not word.startswith(("timm:", "floor:")):
            exports[word], faults = find_export(word)
            for fault in faults:
                tell(f"passed over: {fault}")
    if add_floors:
        words += [floor for floor in _default_floors(words, bool(exports)) if floor not in words]
    first = next(iter(exports.values()), None)
    models = [_load(word, exports.get(word), first, device) for word in words]
    return _with_unique_names(words, sorted(models, key=lambda model: model.kind == "floor"), models)


def _default_floors(words: Sequence[str], any_export: bool) -> list[str]:
    has_random_init = any(word.startswith("floor:random_init") for word in words)
    return ["floor:random_init"] * (any_export and not has_random_init) + list(_FREE_FLOORS)


def _load(word: str, export: Export | None, first: Export | None, device: torch.device) -> Model:
    if export is not None:
        return export_model(export, device)
    kind, _, name = word.partition(":")
    if kind == "timm":
        return timm_model(name, device)
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


def _with_unique_names(words: Sequence[str], ordered: list[Model], loaded: list[Model]) -> list[Model]:
    """Name models alike by the words that the user gave for them."""
    names = [model.name for model in ordered]
    word_of = {id(model): word for word, model in zip(words, loaded, strict=True)}
    return [replace(model, name=word_of[id(model)]) if names.count(model.name) > 1 else model for model in ordered]
