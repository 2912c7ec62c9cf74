"""The page of `python -m pretrain show`: some samples as training sees them, and what a checkpoint makes of them.

Batches, patch sets and colours come from the parts that training uses, in the run's own order of samples; the page
only paints what they give. Cost: the step's share of a few samples, and where a run is given its checkpoint in memory
and two forward passes on the CPU; about half a MB of page for each sample of 2 × 448² and 8 × 96² views.
"""

import shlex
from collections.abc import Sequence
from dataclasses import replace

from pretrain.batches.sources import make_colour, open_sources
from pretrain.model.pera import PerA
from pretrain.pages.legend import compared, facts, legend
from pretrain.pages.page import commands, encoded, page
from pretrain.pages.samples import ShownSample, sample_html
from pretrain.pages.show import ShowConfig
from pretrain.pages.shown import Subject, read_samples
from pretrain.runs.checkpoint import load_newest
from pretrain.runs.record import read_run, require_same_data, with_own_weights
from shards import storage
from shards.dataset import CorruptSampleError
from shards.errors import UserError


def write_show(show: ShowConfig) -> str:
    """Write the page and return its URL; an existing one is replaced.

    Raises:
        UserError: the data, the run or the folder of the page are not there or do not fit, or a sample is damaged.
        StorageError: a store kept failing.
    """
    _require_place(show.out)
    subject = open_subject(show)
    try:
        with storage.user_errors(show.data):
            samples = read_samples(subject, show.samples, show.step)
    except CorruptSampleError as error:
        raise UserError(f"{error}: restore its shard, or show others with --step") from error
    with storage.user_errors(show.out):
        storage.write_bytes(show.out, encoded(render(show, subject, samples)))
    return show.out


def _require_place(out: str) -> None:
    if not storage.is_local(out):
        return
    path = storage.local_path(out)
    if path.is_dir():
        raise UserError(f"{out} is a folder: name a file in it, e.g. {path / 'show.html'}")
    if not path.parent.is_dir():
        raise UserError(f"{out}: there is no folder {path.parent}; make it, or name another file with --out")


def open_subject(show: ShowConfig) -> Subject:
    """Open the data, and the newest checkpoint where a run is given; writes nothing.

    Raises:
        UserError: they are not there, or do not belong together.
    """
    config, run = show.training(), show.run
    if not run:
        sources = open_sources(config)
        return Subject(config=config, sources=sources, colour=make_colour(sources, config))
    record = read_run(config)
    if record is None:
        raise UserError(f"{run} holds no run: give the folder that `python -m pretrain --run` wrote, or leave --run")
    config = with_own_weights(config)
    sources = open_sources(config, record.dataset_versions)
    require_same_data(config, record, sources.digests)
    with storage.user_errors(run):
        found = load_newest(run)
    if found is None:
        raise UserError(f"{run} has no checkpoint yet: wait for its first, or leave --run to see what goes in")
    model = PerA(config, len(sources.bands))
    model.load_state_dict(found[0].model)
    # What the network is used to, whatever the weights of datasets are by now.
    colour = replace(make_colour(sources, config), mean=record.mean, std=record.std)
    return Subject(config=config, sources=sources, colour=colour, model=model, model_step=found[0].step)


def render(show: ShowConfig, subject: Subject, samples: Sequence[ShownSample]) -> str:
    """Return the page: what is compared, then each sample."""
    has_model = subject.model is not None
    made = f", and what the checkpoint of {show.run} at step {subject.model_step:,} makes of them" if has_model else ""
    count = f"{len(samples)} sample{'' if len(samples) == 1 else 's'}"
    lead = f"{count} of {show.data} as step {show.step:,} of a run with this configuration gets them{made}."
    body = [
        "<h2>What the loss compares</h2>",
        compared(subject.config, len(subject.sources.bands)),
        legend(subject.config, has_model),
        *[sample_html(sample) for sample in samples],
        "<h2>What to run</h2>",
        commands(_commands(show)),
    ]
    title = "What training sees" + (", and what it makes of it" if has_model else "")
    return page(title, lead, facts(subject.config, subject.sources.bands), "\n".join(body))


def _commands(show: ShowConfig) -> dict[str, str]:
    run = f" --run {shlex.quote(show.run)}" if show.run else ""
    given = run or f" --data {shlex.quote(show.data)} --config <its configuration>"
    out = shlex.quote(show.out)
    return {
        "Other samples": f"python -m pretrain show{given} --step {show.step + 1} --samples {show.samples} --out {out}",
        "How the run goes": f"python -m pretrain curves{run}" if run else "",
    }
