"""PerA the straightforward way: the yardstick of tests/bench/train.py, the same maths under the same parameter names.

Both sides are float copies of whole images, coloured as ours are, all of whose patches are embedded; boolean masks pick
the tokens; the two sizes of views go through the heads one after the other, which build their weights from direction
and gain each time; the cross-entropy keeps log-softmax over all prototypes; stochastic depth computes all images and
sets some to zero. Blocks are timm's own, attention is torch's fused one.

Shape legend: N = V views · B images, view-major; C bands, L patches, W width, K prototypes, D values of a patch.
"""

from dataclasses import dataclass, replace

import torch
from timm.layers import DropPath
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from pretrain.batches.batch import Batch, ViewBatch
from pretrain.batches.colour import Colour
from pretrain.batches.views import ColourDraws
from pretrain.config import Config
from pretrain.model.backbone import vit_arguments
from pretrain.transfer import send

_WEIGHT = "parametrizations.weight"


@dataclass(frozen=True, kw_only=True)
class DenseViews:
    """Both sides of all views of one size; masks are bool."""

    student_NCHW: Tensor
    teacher_NCHW: Tensor
    student_NL: Tensor
    learnable_NL: Tensor
    teacher_NL: Tensor

    @classmethod
    def of(cls, views: ViewBatch, colour: Colour, device: torch.device) -> "DenseViews":
        """Return what each side is to see of what the loader delivers."""
        crops_NCHW = send(views.crops_NCHW, device)
        first_N1 = torch.zeros(len(crops_NCHW), 1, dtype=torch.int64)

        def paint(draws: ColourDraws) -> Tensor:
            # As if a crop were one large patch: contrast is that of the whole image.
            (values_N1D,) = colour(crops_NCHW.flatten(1)[:, None], (first_N1,), draws)
            return values_N1D.view(crops_NCHW.shape)

        def mask(indices_NP: Tensor) -> Tensor:
            num_patches = crops_NCHW[0, 0].numel() // views.patch_px**2
            none_NL = torch.zeros(len(indices_NP), num_patches, dtype=torch.bool, device=device)
            return none_NL.scatter_(1, send(indices_NP, device), True)

        return cls(
            student_NCHW=paint(views.student_colours),
            teacher_NCHW=paint(views.teacher_colours),
            student_NL=mask(views.student_indices_NP),
            learnable_NL=mask(views.learnable_indices_NP),
            teacher_NL=mask(views.teacher_indices_NP),
        )

    def double(self) -> "DenseViews":
        """Return the same with images in float64."""
        return replace(self, student_NCHW=self.student_NCHW.double(), teacher_NCHW=self.teacher_NCHW.double())


class PlainHead(nn.Module):
    """MLP, L2 normalisation, weight-normalised layer."""

    def __init__(self, config: Config, out_features: int) -> None:
        super().__init__()
        hidden, bottleneck = config.head.hidden, config.head.bottleneck
        self.mlp = nn.Sequential(
            nn.Linear(config.model.width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        self.last_layer = weight_norm(nn.Linear(bottleneck, out_features, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [..., width] to [..., out_features]."""
        return self.last_layer(functional.normalize(self.mlp(x), dim=-1))


class PlainBranch(nn.Module):
    """A timm backbone, with stochastic depth that zeroes, and its cls head."""

    def __init__(self, config: Config, num_bands: int, drop_path: float) -> None:
        super().__init__()
        self.backbone = VisionTransformer(**vit_arguments(config.model, num_bands), dynamic_img_size=True)
        for block in self.backbone.blocks if drop_path else ():
            block.drop_path1, block.drop_path2 = DropPath(drop_path), DropPath(drop_path)
        self.cls_head = PlainHead(config, config.head.prototypes)

    def positions(self, num_patches: int) -> Tensor:
        """Return the position embedding [L, W], interpolated as the method asks."""
        own, grid = self.backbone.pos_embed[0, 1:], self.backbone.patch_embed.grid_size[0]
        side = round(num_patches**0.5)
        if side == grid:
            return own
        image = own.T.reshape(1, -1, grid, grid)
        scale = (side + 0.1) / grid
        return functional.interpolate(image, scale_factor=(scale, scale), mode="bicubic")[0].flatten(1).T

    def embed(self, images_NCHW: Tensor) -> Tensor:
        """Embed all patches, without positions: [N, L, W]."""
        return self.backbone.patch_embed(images_NCHW).flatten(1, 2)

    def with_cls(self, x_NTW: Tensor) -> Tensor:
        """Put the cls token before the others."""
        cls = self.backbone.cls_token + self.backbone.pos_embed[:, :1]
        return torch.cat([cls.expand(len(x_NTW), -1, -1), x_NTW], dim=1)

    def encode(self, images_NCHW: Tensor, seen_NL: Tensor) -> Tensor:
        """Return the tokens [N, 1 + P, W] of [cls, seen patches]."""
        x_NLW = self.embed(images_NCHW)
        x_NLW = x_NLW + self.positions(x_NLW.shape[1])
        x_NTW = self.with_cls(x_NLW[seen_NL].reshape(len(x_NLW), -1, x_NLW.shape[-1]))
        return self.backbone.norm(self.backbone.blocks(x_NTW))


class PlainPerA(nn.Module):
    """Student, teacher, heads, mask token and centre; loads the state of `pretrain.model.pera.PerA`."""

    def __init__(self, config: Config, num_bands: int) -> None:
        super().__init__()
        self.config = config
        self.student = PlainBranch(config, num_bands, config.model.drop_path)
        self.teacher = PlainBranch(config, num_bands, 0.0).requires_grad_(False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.model.width))
        self.pixel_head = PlainHead(config, num_bands * config.model.patch_px**2)
        self.register_buffer("centre", torch.zeros(config.head.prototypes))

    def load(self, state: dict[str, Tensor]) -> None:
        """Take the weights of a PerA, whose weight-normalised layers name direction and gain otherwise."""
        self.load_state_dict({name: state[our_names(name)] for name in self.state_dict()})

    def forward(self, global_views: DenseViews, local_views: DenseViews | None, temperature: float) -> Tensor:
        """Return the total loss; the centre follows at once."""
        tokens_NTW, predictions_PD = self.run_student(global_views)
        features = tokens_NTW[:, 0]
        student, teacher = [self.student.cls_head(features)], []
        for views in (global_views, local_views):
            if views is not None:
                with torch.no_grad():
                    cls = self.teacher.encode(views.teacher_NCHW, views.teacher_NL)[:, 0]
                    teacher.append(self.teacher.cls_head(cls))
        if local_views is not None:
            cls = self.student.encode(local_views.student_NCHW, local_views.student_NL)[:, 0]
            student.append(self.student.cls_head(cls))
        cross_entropy = self.cross_entropy(torch.cat(student), torch.cat(teacher), temperature)
        spread = sum(koleo(view) for view in features.chunk(self.config.views.num_global))
        squared = (predictions_PD - self.targets(global_views)).square().sum(-1).mean()
        weights = self.config.loss
        return cross_entropy + weights.koleo * spread + weights.pixel * squared

    def run_student(self, views: DenseViews) -> tuple[Tensor, Tensor]:
        """Return the tokens of [cls, student, learnable] after the norm and the predicted pixels [N · P, D]."""
        vit = self.student.backbone
        x_NLW = self.student.embed(views.student_NCHW)
        n, num_patches, width = x_NLW.shape
        x_NLW = torch.where(views.student_NL[..., None], x_NLW, self.mask_token) + self.student.positions(num_patches)
        half = len(vit.blocks) // 2
        x_NTW = self.student.with_cls(x_NLW[views.student_NL].reshape(n, -1, width))
        x_NTW = vit.blocks[:half](x_NTW)
        all_NLW = x_NLW.clone()
        all_NLW[views.student_NL] = x_NTW[:, 1:].reshape(-1, width)
        joined_NL = views.student_NL | views.learnable_NL
        x_NTW = torch.cat([x_NTW[:, :1], all_NLW[joined_NL].reshape(n, -1, width)], dim=1)
        x_NTW = vit.norm(vit.blocks[half:](x_NTW))
        learnable_NP = views.learnable_NL[joined_NL].reshape(n, -1)
        return x_NTW, self.pixel_head(x_NTW[:, 1:][learnable_NP])

    def targets(self, views: DenseViews) -> Tensor:
        """Return the pixels of the learnable patches [N · P, D] in the order row, column, channel."""
        images, patch_px = views.student_NCHW, self.config.model.patch_px
        n, bands, height, width = images.shape
        grid = images.reshape(n, bands, height // patch_px, patch_px, width // patch_px, patch_px)
        return grid.permute(0, 2, 4, 3, 5, 1).reshape(n, -1, patch_px**2 * bands)[views.learnable_NL]

    def cross_entropy(self, student_NK: Tensor, teacher_NK: Tensor, temperature: float) -> Tensor:
        """Return the mean over all pairs, and let the centre follow."""
        p_NK = functional.softmax((teacher_NK - self.centre) / temperature, dim=-1)
        self.centre.lerp_(teacher_NK.mean(0).to(self.centre.dtype), 1 - self.config.loss.centre_momentum)
        log_q_NK = functional.log_softmax(student_NK / self.config.loss.student_temperature, dim=-1)
        return -(p_NK * log_q_NK).sum(-1).mean()

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Let the teacher follow the student."""
        for own, other in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            own.mul_(momentum).add_(other, alpha=1 - momentum)


class PlainTrainer:
    """AdamW as it comes, and clipping."""

    def __init__(self, config: Config, num_bands: int, colour: Colour) -> None:
        self.colour = colour
        self.device = torch.device(config.device)
        self.half = config.precision == "bfloat16"
        self.model = PlainPerA(config, num_bands).to(self.device)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=1e-4, weight_decay=0.04)

    def step(self, batch: Batch) -> None:
        """Make an optimiser step."""
        self.optimiser.zero_grad()
        assert batch.local_views is not None
        views = [DenseViews.of(each, self.colour, self.device) for each in (batch.global_views, batch.local_views)]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            loss = self.model(*views, 0.05)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 3.0)
        self.optimiser.step()
        self.model.update_teacher(0.99)


def our_names(name: str) -> str:
    """Return what `pretrain.model.pera.PerA` calls a parameter."""
    return name.replace(f"{_WEIGHT}.original0", "weight_g").replace(f"{_WEIGHT}.original1", "weight_v")


def koleo(features_BW: Tensor) -> Tensor:
    """Return -mean log of the distance to the nearest neighbour of L2-normalised vectors."""
    x_BW = functional.normalize(features_BW, eps=1e-8)
    nearest_B = (x_BW @ x_BW.T).fill_diagonal_(-2).argmax(1)
    return -(functional.pairwise_distance(x_BW, x_BW[nearest_B], eps=1e-8) + 1e-8).log().mean()
