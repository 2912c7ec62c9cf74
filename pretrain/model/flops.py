"""What a step costs: its matrix products, counted from the configuration, so that a rate of work can be told.

A multiply-add is two operations. Counted are the products of the maths: embedding of the gathered patches, the four
products of a block (24 T W² for T tokens of width W) and attention itself (4 T² W), both heads with their last layers;
the student's three times, because its backward pass makes two products for each of the forward pass (one for the
embedding, whose input learns nothing, and for the positions of local views), the teacher's once. A branch under
stochastic depth is counted for the images that it is computed for, not for all; the last block for the tokens that are
asked for, not for those that are only looked at.

Not counted, as all of it together is below a hundredth of the operations, though not of the time: norms, GELU, softmax,
losses, colours, clipping, AdamW, the teacher's average, and the centre, which is one product with a vector. Nor what
attention computes again in its backward pass. What else is computed a second time to save memory is told apart.

Shape legend: T tokens of an image, W width, L patches of a view. Cost of the count itself: microseconds.
"""

from dataclasses import dataclass

from pretrain.batches.masks import SetSizes
from pretrain.config import Config, ModelConfig
from pretrain.model.backbone import num_kept


@dataclass(frozen=True, kw_only=True)
class StepFlops:
    """Floating-point operations of one optimiser step on one rank."""

    student: int
    """Backbone: forward and backward."""
    teacher: int
    """Backbone: forward."""
    cls_heads: int
    """Both sides', with the prototypes."""
    pixel_head: int
    """Forward and backward."""
    repeated: int
    """What activation checkpointing and accumulation compute again; no part of the total."""

    @property
    def total(self) -> int:
        """What the maths needs: what a rate of work is told of."""
        return self.student + self.teacher + self.cls_heads + self.pixel_head


def step_flops(config: Config, num_bands: int, batch: int) -> StepFlops:
    """Count the operations of a step.

    Args:
        config: model, heads, views, masks, accumulation and activation checkpointing.
        num_bands: of the images.
        batch: images of the step on this rank, a multiple of the micro-batches.
    """
    assert batch % config.accumulate == 0, f"{batch} images do not make {config.accumulate} equal parts"
    part = _part_flops(config, num_bands, batch // config.accumulate)
    return StepFlops(
        student=config.accumulate * part.student,
        teacher=config.accumulate * part.teacher,
        cls_heads=config.accumulate * part.cls_heads,
        pixel_head=config.accumulate * part.pixel_head,
        repeated=config.accumulate * part.repeated,
    )


def _part_flops(config: Config, num_bands: int, batch: int) -> StepFlops:
    """Count a micro-batch."""
    views, model = config.views, config.model
    values = num_bands * model.patch_px**2
    global_sets = config.set_sizes(model.image_px)
    # Without local views their side may be any, and be too small for a patch.
    local_sets = config.set_sizes(views.local_px) if views.num_local else global_sets
    num_global, num_local = views.num_global * batch, views.num_local * batch
    taught_global, taught_local = (
        number * (size in config.teacher_sizes) for number, size in ((num_global, "global"), (num_local, "local"))
    )
    global_blocks = _joined_blocks(model, num_global, global_sets)
    blocks = global_blocks + _cls_blocks(model, num_local, 1 + local_sets.student, model.drop_path)
    teacher_blocks = _cls_blocks(model, taught_global, 1 + global_sets.teacher)
    teacher_blocks += _cls_blocks(model, taught_local, 1 + local_sets.teacher)
    global_embedding = _embedding(model, values, num_global * global_sets.student)
    embedding = global_embedding + _embedding(model, values, num_local * local_sets.student)
    seen_by_teacher = taught_global * global_sets.teacher + taught_local * local_sets.teacher
    seen_by_student = (num_global + num_local) * bool(config.pairs)
    bottlenecks = _bottleneck(config) * (3 * seen_by_student + taught_global + taught_local)
    prototypes = _last_layer(config, config.head.prototypes) * (3 + 1) * batch * len(config.pairs)
    repeated = blocks if config.activation_checkpointing else 0
    if config.accumulate > 1 and config.loss.koleo:
        repeated += global_embedding + global_blocks
    positions = _local_positions(config)
    return StepFlops(
        student=2 * (embedding + positions) + 3 * blocks,
        teacher=_embedding(model, values, seen_by_teacher) + teacher_blocks + positions * bool(taught_local),
        cls_heads=bottlenecks + prototypes,
        pixel_head=3 * (_bottleneck(config) + _last_layer(config, values)) * num_global * global_sets.learnable,
        repeated=repeated,
    )


def _embedding(model: ModelConfig, values: int, num_patches: int) -> int:
    return 2 * num_patches * values * model.width


def _local_positions(config: Config) -> int:
    """Count the interpolation of the position embedding for all local views together."""
    model, views = config.model, config.views
    if not views.num_local or views.local_px == model.image_px:
        return 0
    num_global, num_local = (side_px**2 // model.patch_px**2 for side_px in (model.image_px, views.local_px))
    return 2 * num_local * num_global * model.width


def _joined_blocks(model: ModelConfig, num_images: int, sets: SetSizes) -> int:
    """Count the blocks of the global views, forward: the mask tokens join on the way."""
    join, rate = model.join_block, model.drop_path
    without = join * _block(model, num_images, 1 + sets.student, rate)
    joined, asked = 1 + sets.student + sets.learnable, 1 + sets.learnable
    with_them = (model.depth - join - 1) * _block(model, num_images, joined, rate)
    return without + with_them + _block(model, num_images, joined, rate, asked)


def _cls_blocks(model: ModelConfig, num_images: int, tokens: int, drop_path: float = 0.0) -> int:
    """Count all blocks where the cls token alone is asked for, forward."""
    others = (model.depth - 1) * _block(model, num_images, tokens, drop_path)
    return others + _block(model, num_images, tokens, drop_path, asked=1)


def _block(model: ModelConfig, num_images: int, tokens: int, drop_path: float = 0.0, asked: int | None = None) -> int:
    """Count a block on images of so many tokens, of which so many are asked for, forward."""
    kept, width = num_kept(num_images, drop_path) if num_images else 0, model.width
    asked = tokens if asked is None else asked
    projections = 4 * width**2 * (tokens + asked)
    attention, mlp = 4 * tokens * asked * width, 16 * asked * width**2
    return kept * (projections + attention + mlp)


def _bottleneck(config: Config) -> int:
    """Count a head's MLP for one token, forward."""
    hidden, bottleneck = config.head.hidden, config.head.bottleneck
    return 2 * (config.model.width * hidden + hidden * hidden + hidden * bottleneck)


def _last_layer(config: Config, out_features: int) -> int:
    """Count a head's last layer for one token, forward."""
    return 2 * config.head.bottleneck * out_features
