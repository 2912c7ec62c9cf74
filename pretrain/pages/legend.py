"""What the page says about all samples: who sees what, and what the loss compares."""

from pretrain.batches.masks import SetSizes
from pretrain.config import Config
from pretrain.pages.page import table


def sizes_of(config: Config, size: str) -> SetSizes:
    """Return how many patches of a view are in which set.

    Args:
        config: of the run.
        size: "global" or "local".
    """
    return config.set_sizes(config.model.image_px if size == "global" else config.views.local_px)


def facts(config: Config, bands: tuple[str, ...]) -> dict[str, str]:
    """Return what stands large at the top of the page."""
    views, patch_px = config.views, config.model.patch_px
    return {
        "Global views": f"{views.num_global} of {config.model.image_px} px",
        "Local views": f"{views.num_local} of {views.local_px} px" if views.num_local else "none",
        "Patch": f"{patch_px} × {patch_px} × {len(bands)}",
        "Bands": ", ".join(bands),
        "Pairs": str(len(config.pairs)),
        "Batch": str(config.loader.batch),
    }


def legend(config: Config, has_model: bool) -> str:
    """Return what the colours of the sets mean, with how many patches are in each.

    Args:
        config: of the run.
        has_model: whether the page shows what a model made of the samples.
    """
    whole, local = sizes_of(config, "global"), sizes_of(config, "local") if config.views.num_local else None
    sets = {
        "student": f"student: {whole.student}",
        "learnable": f"predicted by the student: {whole.learnable}",
        "teacher": f"teacher: {_taught(config, 'global')}",
    }
    keys = "".join(f'<i class="set {name}"></i>{text}' for name, text in sets.items())
    rest = ""
    if local:
        taught = _taught(config, "local")
        left = "" if local.independent else f"; nobody gets {local.patches - local.student - taught} others"
        rest = f" Of a local view: student {local.student}, teacher {taught}{left}."
    learnt = (
        "<p>Features of patches: the first three principal components over all views as red, green and "
        "blue, so that the same colour means the same everywhere. They see the whole view in its own colours.</p>"
    )
    return (
        f"<p>Of a global view's {whole.patches} patches:{keys}.{rest} {_overlap(config)}Sets and "
        f"colours are drawn anew for each sample, view and epoch. Pictures are what the model is given, with the "
        f"normalisation undone.</p>{learnt if has_model else ''}"
    )


def _taught(config: Config, size: str) -> int:
    return sizes_of(config, size).teacher if size in config.teacher_sizes else 0


def _overlap(config: Config) -> str:
    told = "The teacher's are drawn on their own, and some are also the student's. "
    return told if config.masks.independent and config.teacher_sizes else ""


def compared(config: Config, num_bands: int) -> str:
    """Return a table of what the loss compares, by its terms."""
    views, loss, whole = config.views, config.loss, sizes_of(config, "global")
    names = [f"G{number}" for number in range(views.num_global)] + [f"L{number}" for number in range(views.num_local)]
    num_values = num_bands * config.model.patch_px**2
    rows = [
        [
            "Cross-entropy",
            f"cls of the student's patches of view i, i = {', '.join(names)}",
            "cls of the teacher's patches of "
            + ("every other global view" if loss.crossed else "the same view i; no other pairs"),
            f"{loss.cls:g}, as the mean over {len(config.pairs)} pairs",
        ],
        [
            "Pixel loss",
            f"{whole.learnable} predicted patches of each global view, {num_values:,} values each",
            "the student's own pixels there, "
            + ("in its colours" if config.colour.perturb_targets else "as they are in the image"),
            f"{loss.pixel:g}",
        ],
        [
            "KoLeo",
            "cls " + ("scores" if loss.koleo_on_head else "features") + " of the student, each global view apart",
            "the nearest other image of the batch: to be far from it",
            f"{loss.koleo:g}, summed over {views.num_global} views",
        ],
    ]
    if not config.pairs:
        del rows[0]
    return table(["Term", "From the student", "Against", "Weight"], rows)
