"""The card of an exported backbone: what it is, how to load it, what it was made from and how, and its limits.

A pure function of what the run wrote down. It names datasets by their digests and no place where they lie, so that a
card may be shown to anybody.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml

from pretrain.pages.figures import MEANINGS, Rows, told

CONFIG_FILE, CURVES_FILE = "pretrain.yaml", "curves.png"
CURVES = ("loss", "divergence", "feature_spread")
"""Figures in the picture."""
_LOSSES = ("loss", "global_cls", "local_cls", "divergence", "koleo", "pixel", "teacher_entropy", "teacher_diversity",
           "feature_spread", "feature_rank")  # fmt: skip
_START = "init_from"
_HOW = ("accumulate", "activation_checkpointing", "compile", "shard")
"""Options that may differ from start to start: they decide last bits, and what stochastic depth leaves out."""
_TAGS = ["timm", "image-feature-extraction", "remote-sensing", "self-supervised-learning", "pera"]
_USE = """\
import json
from pathlib import Path

import timm
import torch

folder = Path(".")  # this folder; from a hub: timm.create_model("hf-hub:USER/NAME", pretrained=True)
model = timm.create_model(f"local-dir:{{folder}}", pretrained=True).eval()
described = json.loads((folder / "model.json").read_text())
mean, std = (torch.tensor(described[name])[:, None, None] for name in ("mean", "std"))

# Bands, rows, columns; the bands in this order: {bands}.
pixels = torch.zeros({num_bands}, {px}, {px}, dtype=torch.{dtype})
images = ((pixels.float() / {largest} - mean) / std)[None]
with torch.inference_mode():
    features = model(images)  # [1, {width}]: the class token
    tokens = model.forward_features(images)  # [1, 1 + {num_patches}, {width}]: class token, then patches by rows
"""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a card is written from."""

    description: Mapping[str, Any]
    """The content of the export's model.json."""
    record: Mapping[str, Any]
    """The content of run.json."""
    config: Mapping[str, Any]
    """The content of config.yaml."""
    weights: Sequence[float] | None
    """Of the datasets of a mixture, at the export; None: by their sizes."""
    rows: Rows
    """Of metrics, up to the export's step."""
    num_parameters: int
    has_curves: bool
    """Whether a picture of the curves lies beside the card."""
    licence: str | None
    """Of the weights, by the hub's name for it."""


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Turn dotted keys into nested dictionaries, as a configuration file has them."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, name = key.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return tree


def configuration(record: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Return the part of a run's configuration that decides what is computed, as YAML for `--config`.

    Where the starting weights lay is left out, as the datasets are: `started_from` says whether there were any.

    Args:
        record: content of run.json.
        config: content of config.yaml, for what run.json leaves open.
    """
    identity = {key: value for key, value in record["identity"].items() if key != _START}
    how = {name: config[name] for name in _HOW if name in config}
    return yaml.safe_dump(nested(how | identity), sort_keys=False, default_flow_style=None, width=110)


def started_from(record: Mapping[str, Any]) -> str:
    """Return what a run's backbone started from: "" for nothing, timm:NAME, or the last part of a URL."""
    return str(record["identity"].get(_START) or "").rstrip("/").rpartition("/")[2]


def write_card(facts: Facts) -> str:
    """Return the card as Markdown with a model hub's YAML header."""
    header = {
        **({"license": facts.licence} if facts.licence else {}),
        "library_name": "timm",
        "pipeline_tag": "image-feature-extraction",
        "tags": _TAGS,
        "dataset_digests": list(facts.record["digests"]),
    }
    text = yaml.safe_dump(header, sort_keys=False)
    return f"---\n{text}---\n\n" + "\n".join(_sections(facts))


def _sections(facts: Facts) -> Iterator[str]:
    yield _what(facts)
    yield "## Use\n\n```python\n" + use(facts.description) + "```\n"
    yield "Nothing but timm and what it needs is imported, and nothing is fetched from a network.\n"
    yield "## Input\n\n" + _input(facts.description)
    yield "## Training data\n\n" + _data(facts)
    yield "## Training\n\n" + _training(facts)
    yield "## To make it again\n\n" + _again(facts)
    yield "## Limits\n\n" + _limits(facts)
    if not facts.licence:
        yield "## Licence\n\nNot chosen yet: the data's licences may decide it. Add `license:` to the header.\n"


def use(description: Mapping[str, Any]) -> str:
    """Return the code that loads an export and makes features, to be run in its folder."""
    return _USE.format(
        bands=", ".join(description["bands"]),
        num_bands=len(description["bands"]),
        px=description["image_px"],
        dtype=description["dtype"],
        largest=np.iinfo(description["dtype"]).max,
        width=description["model_args"]["embed_dim"],
        num_patches=(description["image_px"] // description["patch_px"]) ** 2,
    )


def _what(facts: Facts) -> str:
    told_of, model = facts.description, facts.description["model_args"]
    epochs = f", {_epochs(facts.rows):.4g} epochs" if facts.rows else ""
    return (
        f"# PerA ViT {model['embed_dim']} × {model['depth']}, patch {told_of['patch_px']}, {told_of['image_px']} px\n\n"
        f"A vision transformer for images from above: {model['depth']} blocks of width {model['embed_dim']}, "
        f"{model['num_heads']} attention heads, patches of {told_of['patch_px']}² pixels, "
        f"{facts.num_parameters / 1e6:.1f} M parameters. It was pre-trained without labels by PerA "
        "([arXiv 2505.19447](https://arxiv.org/abs/2505.19447)): student and teacher see disjoint patches of the same "
        f"crop and must agree on what it shows. These are the weights of the teacher's backbone after "
        f"{told_of['step']:,} optimiser steps, {told_of['samples_seen']:,} samples{epochs}.\n"
    )


def _input(description: Mapping[str, Any]) -> str:
    px, largest = description["image_px"], np.iinfo(description["dtype"]).max
    bands = zip(description["bands"], description["mean"], description["std"], strict=True)
    rows = [[str(place), name, f"{mean:.4f}", f"{std:.4f}"] for place, (name, mean, std) in enumerate(bands, 1)]
    return (
        f"{px} × {px} pixels, `{description['dtype']}`, divided by {largest}, then by band less the mean and divided "
        "by the standard deviation (exact values in `model.json`):\n\n"
        + _table(["Place", "Band", "Mean, of 0…1", "Standard deviation"], rows)
    )


def _data(facts: Facts) -> str:
    digests, versions = facts.record["digests"], facts.record["dataset_versions"]
    unsaid = "by size" if len(digests) > 1 else "all"
    # What was seen, where the export tells: the weights may have been others on the way.
    shares = facts.weights and facts.description.get("mixture", {}).get("samples", facts.weights)
    rows = [
        [f"`{digest}`", str(version), f"{shares[place] / sum(shares):.3g}" if shares else unsaid]
        for place, (digest, version) in enumerate(zip(digests, versions, strict=True))
    ]
    size = f"{_num_samples(facts.rows):,} samples in all. " if facts.rows else ""
    return f"{size}A dataset's digest names its whole content:\n\n" + _table(
        ["Digest", "Version", "Share of samples"], rows
    )


def _training(facts: Facts) -> str:
    options = configuration(facts.record, facts.config)
    text = f"All options that decide what was computed:\n\n```yaml\n{options}```\n"
    if facts.rows:
        last = facts.rows[-1]
        rows = [[f"`{name}`", told(name, last[name]), MEANINGS[name]] for name in _LOSSES if name in last]
        text += f"\nFigures of step {last['step']:,}:\n\n" + _table(["Figure", "Value", "What it is"], rows)
    if facts.has_curves:
        text += f"\n![Curves over the steps]({CURVES_FILE})\n"
    versions = ", ".join(f"{name} {number}" for name, number in facts.record["versions"].items())
    return f"{text}\nVersions: {versions}.\n"


def _again(facts: Facts) -> str:
    start = started_from(facts.record)
    words = ["python", "-m", "pretrain", "--config", CONFIG_FILE, *_datasets(facts), "--run", "RUN"]
    words += ["--init_from", start] if start else []
    words += ["--max_steps", str(facts.description["step"])]
    since = facts.description.get("mixture", {}).get("weights_since_sample", 0)
    changed = (
        "\nThe weights of the datasets were changed on the way: those of the command hold from sample "
        f"{since:,} on, and with them alone it becomes another backbone.\n"
    )
    return (
        f"```\n{shlex.join(words)}\n```\n\n"
        "with datasets of the digests above (`python -m shards digest DATASET1`), in their order"
        f"{f', and the weights it started from, {start}' if start else ''}. The same versions on a CPU with as many "
        "ranks and cores give the same weights, bit for bit, if the run was started with these options each time; "
        f"other devices come close.\n{changed if since else ''}"
    )


def _datasets(facts: Facts) -> list[str]:
    """Return the flags that name a run's datasets."""
    first, *others = (f"DATASET{number}" for number in range(1, len(facts.record["digests"]) + 1))
    mix: list[dict[str, Any]] = [{"data": name} for name in others]
    flags = []
    if facts.weights:
        flags = ["--weight", str(facts.weights[0])]
        mix = [{**each, "weight": weight} for each, weight in zip(mix, facts.weights[1:], strict=True)]
    if mix:
        flags += ["--mix", yaml.safe_dump(mix, default_flow_style=True, sort_keys=False, width=10_000).strip()]
    return ["--data", first, *flags]


def _limits(facts: Facts) -> str:
    description = facts.description
    px, largest = description["image_px"], np.iinfo(description["dtype"]).max
    lines = [
        f"What goes in is {description['dtype']}, as 0…1 after the division by {largest}. Reflectances, decibels or "
        "another stretch must be brought to that range as the training data were.",
        f"It takes the bands {', '.join(description['bands'])}, in this order, and no others.",
        f"It is made for squares of {px} px. `timm.create_model(…, img_size=N)` resamples the position embedding for "
        "others; nobody has measured what that costs.",
        "It knows places, seasons, sensors and ground sample distances that its data show; others are foreign to it.",
        "This card does not say what it is worth for a task: compare it by k-NN and linear probe, with simple floors, "
        "before building on it.",
    ]
    return "".join(f"- {line}\n" for line in lines)


def _epochs(rows: Rows) -> float:
    return float(rows[-1]["epoch"])


def _num_samples(rows: Rows) -> int:
    """Return the size of an epoch, which a row tells by how many of them its samples are."""
    return round(float(rows[-1]["samples"]) / _epochs(rows))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
