"""The inputs of every clustering method: scenes, pixels, settings and tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial

import numpy as np
from torch import Tensor

from ..config import Config
from ..data.scene_set import SceneSet
from ..data.windows import PixelStore, open_store
from ..progress import Progress
from ..run import Run
from .inference import Classifier
from .mixture import fit, posterior_map
from .smoothing import guide_of
from .tokens import JoinedTokens, PrincipalTokens, StatisticTokens, TokenMap, draw_tokens

UNNAMED_CLUSTERS = 12  # where no class table says how many: more than needed, to be joined by eye


@dataclass
class ClusteringTask:
    """Inputs of a run: our method and the baselines share scenes, pixels and tokens."""

    scenes: SceneSet
    store: PixelStore
    config: Config
    _shared: dict[str, TokenMap] = field(default_factory=dict, init=False, repr=False)
    # Samples of reduced tokens: reading all training scenes again would take minutes.
    _samples: dict[TokenMap, np.ndarray] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of_run(cls, run: Run, scenes: SceneSet) -> ClusteringTask:
        """Build the task with the sensors, device and settings of a run."""
        return cls(scenes, open_store(scenes, run.config, run.device), run.config)

    @property
    def stride(self) -> int:
        """Pixels per token of our network."""
        return self.config.model.stride

    @property
    def num_clusters(self) -> int:
        """K: as configured, else as many as the data set has classes."""
        classes = self.scenes.layout.classes
        return self.config.cluster.num_clusters or len(classes) or UNNAMED_CLUSTERS

    @property
    def num_components(self) -> int:
        """P: components that teacher and network predict, before they are merged to clusters.

        Without classes, to which clusters would be matched one to one, nothing is merged: on real
        imagery, 12 components show more than 24 that are merged to 12 (``tried.md``).
        """
        per_cluster = self.config.cluster.components if self.scenes.labelled else 1
        return self.num_clusters * per_cluster

    def pixels(self, scene: int) -> Tensor:
        """Return the standardised bands of single pixels ``(C, H, W)``: optical and log SAR."""
        return guide_of(self.store, scene).bands

    @property
    def statistics(self) -> TokenMap:
        """Local statistics, or their principal components where there are many."""
        return self.local_statistics()

    def local_statistics(self, progress: Progress | None = None) -> TokenMap:
        """Return ``statistics``; ``progress`` is told of the scenes that are read for them."""

        def make() -> TokenMap:
            train, sigmas = self.scenes.indices("train"), self.config.cluster.sigmas_px
            return StatisticTokens(self.store, train, sigmas, self.stride)

        return self.shared("statistics", make, progress)

    def shared(
        self, name: str, make: Callable[[], TokenMap], progress: Progress | None = None
    ) -> TokenMap:
        """Return reduced tokens that several methods cluster; the first call makes them."""
        if name not in self._shared:
            self._shared[name] = self.reduced(make(), progress)
        return self._shared[name]

    def reduced(self, token_map: TokenMap, progress: Progress | None = None) -> TokenMap:
        """Reduce to ``cluster.max_dims`` dimensions: full covariances of more are hard to estimate.

        Few dimensions are kept as they are.
        """
        sample = self.sample(token_map, self.stride, progress)
        dims = self.config.cluster.max_dims
        if sample.shape[1] > dims:
            token_map = PrincipalTokens(token_map, sample, dims)
            sample = token_map.pca.transform(sample)
        return self._kept(token_map, sample)

    def joined(self, kinds: Sequence[TokenMap]) -> TokenMap:
        """Put kinds of reduced tokens side by side, see ``JoinedTokens``."""
        samples = [self.sample(kind, self.stride) for kind in kinds]
        tokens = JoinedTokens(kinds, samples)
        return self._kept(
            tokens, np.hstack([x * s for x, s in zip(samples, tokens.scales, strict=True)])
        )

    def _kept(self, token_map: TokenMap, sample: np.ndarray) -> TokenMap:
        """Keep the tokens of the last scene, as methods ask for the same one in turn."""
        cached = lru_cache(maxsize=1)(token_map)
        self._samples[cached] = sample
        return cached

    def sample(
        self, token_map: TokenMap, stride: int, progress: Progress | None = None
    ) -> np.ndarray:
        """Draw tokens ``(n, D)`` float64 of the training scenes."""
        if (known := self._samples.get(token_map)) is not None:
            return known
        train, config = self.scenes.indices("train"), self.config
        count = config.cluster.tokens
        return draw_tokens(token_map, self.store, train, stride, count, config.seed, progress)

    def cluster(self, name: str, kind: str, token_map: TokenMap, stride: int) -> Classifier:
        """Fit ``kind`` (see ``mixture.fit``) to tokens of the training scenes."""
        tokens, config = self.sample(token_map, stride), self.config
        clusterer = fit(kind, tokens, self.num_clusters, config.cluster, config.seed)
        posteriors = partial(posterior_map, clusterer, token_map)
        return Classifier(name, self.num_clusters, stride, posteriors)
