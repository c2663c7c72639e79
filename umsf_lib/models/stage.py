"""The stage ``despeckle``: train the front end that removes speckle before the SAR encoder.

Speckle multiplies intensity: I = R S with S ~ Gamma(L, 1/L). In ln I it is additive, so a small
residual network can estimate and subtract it. The network is trained on synthetic speckle over
known scenes. Contrastive pretraining then trains it further, as part of the SAR encoder.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import DataError, DespeckleConfig
from ..data.scene_set import SceneSet
from ..data.windows import draw_windows, open_store, training_tiles
from ..progress import Progress
from ..run import Run, to_device, write_json
from ..training.checkpoints import write_state
from ..training.loop import Metrics, Row, cosine_with_warmup, train
from .encoders import Despeckle
from .speckle import add_speckle, boxcar, lee, patchwork

DESPECKLER = "checkpoints/despeckler.pt"
RATIO_WEIGHT = 0.1
RATIO_BOX = 16


def despeckle_loss(estimate: Tensor, noisy: Tensor, clean: Tensor) -> Tensor:
    """Compute the L1 loss in the log, plus a penalty where the ratio image has a mean other than 1.

    All arguments are ln intensity ``(B, 1, h, w)``.
    """
    ratio = F.avg_pool2d((noisy - estimate).exp(), RATIO_BOX)
    return (estimate - clean).abs().mean() + RATIO_WEIGHT * (ratio - 1).abs().mean()


def fit_despeckler(
    module: Despeckle,
    clean: Tensor,
    settings: DespeckleConfig,
    generator: torch.Generator,
    progress: Progress | None = None,
) -> list[Row]:
    """Train on clean images with synthetic speckle of 1 to 8 looks, white or correlated.

    Args:
        module: trained in place.
        clean: ``(N, 1, h, w)`` ln reflectivity, on the module's device.
        settings: steps, batch, crop side (px, at most the side of the images), learning rate.
        generator: CPU generator of all draws.
        progress: see ``loop.train``.
    """
    size = min(settings.crop_px, *clean.shape[2:])
    optimizer = torch.optim.Adam(module.parameters(), lr=settings.lr)

    def number(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    def loss_of(step: int) -> tuple[Tensor, Metrics]:
        pick = torch.randint(len(clean), (settings.batch,), generator=generator)
        top, left = (number(side - size + 1) for side in clean.shape[2:])
        pick = to_device(pick, clean.device)
        crops = clean[pick, :, top : top + size, left : left + size]
        noisy = add_speckle(crops, 1 + number(8), generator, correlated=number(2) == 1)
        return despeckle_loss(module(noisy), noisy, crops), {}

    return train(
        module,
        loss_of,
        optimizer,
        steps=settings.steps,
        schedule=partial(cosine_with_warmup, warmup=max(1, settings.steps // 10)),
        generator=generator,
        batch=("despeckle.batch", settings.batch),
        progress=progress,
    )


def clean_images(run: Run, scenes: SceneSet, count: int = 64) -> Tensor:
    """Make speckle-free training images ``(N, 1, h, w)``: half patchwork, half optical luminance.

    Luminance has the edges and textures of real land; it is scaled to the spread of ln
    reflectivity. Without optical data only the patchwork half is made.
    """
    config, size = run.config, run.config.views.window_px
    generator = torch.Generator().manual_seed(config.seed)
    cells = patchwork(count // 2, size, generator).to(run.device)
    store = open_store(scenes, config, run.device)
    if "optical" not in store.roles:
        return cells
    try:
        tiles = training_tiles(scenes, size, config.views.overlap_px, least_valid=1.0)
    except DataError:  # no window without nodata, which would look like even ground
        return cells
    where = draw_windows(tiles, count - len(cells), size, 0, store.places, generator)
    return torch.cat([cells, store.windows(*where, size)["optical"].mean(dim=1, keepdim=True)])


def train_despeckler(run: Run, scenes: SceneSet, *, progress: Progress | None = None) -> bool:
    """Run the stage ``despeckle``: train the front end, or return at once if the run has it.

    Returns:
        True if it trained.
    """
    settings = run.config.despeckle
    inputs = run.config.section("despeckle", "seed", "views") | {"data": run.outputs_of("data")}

    def make() -> list[str]:
        torch.manual_seed(run.config.seed)
        module = Despeckle(settings.channels).to(run.device)
        generator = torch.Generator().manual_seed(run.config.seed)
        rows = fit_despeckler(module, clean_images(run, scenes), settings, generator, progress)
        state = {name: value.cpu() for name, value in module.state_dict().items()}
        write_state(run.path(DESPECKLER), state)
        write_json(run.path("despeckle.json"), rows)
        return [DESPECKLER, "despeckle.json"]

    return run.stage("despeckle", make, inputs, trains=True)


def load_despeckler(run: Run) -> Despeckle:
    """Load the run's trained front end, on the CPU, in eval mode.

    Raises:
        MissingStageError: if it has not been trained.
    """
    run.outputs_of("despeckle")
    module = Despeckle(run.config.despeckle.channels)
    module.load_state_dict(torch.load(run.path(DESPECKLER), map_location="cpu", weights_only=True))
    return module.eval()


@torch.no_grad()
def despeckle_band(module: Despeckle, log_intensity: np.ndarray) -> np.ndarray:
    """Despeckle one band of ln intensity, ``(h, w)`` -> ``(h, w)``, with a front end on the CPU."""
    band = torch.from_numpy(log_intensity).float()[None, None]  # (1, 1, h, w)
    return module(band)[0, 0].numpy()


def filter_band(
    module: Despeckle, log_intensity: np.ndarray, looks: float
) -> dict[str, np.ndarray]:
    """Filter one band with two classical filters and the learned one.

    Args:
        module: the trained front end, on the CPU.
        log_intensity: ``(h, w)`` natural log of intensity.
        looks: number of looks of the speckle, which the Lee filter needs.

    Returns:
        Filter name -> intensity ``(h, w)``.
    """
    intensity = np.exp(log_intensity)
    return {
        "boxcar 5": boxcar(intensity, 5),
        "Lee 7": lee(intensity, 7, looks),
        "learned": np.exp(despeckle_band(module, log_intensity)),
    }
