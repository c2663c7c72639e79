"""Clustering heads on frozen tokens, side by side on development scenes.

    python benchmarks/heads.py [--profile quick] [--scenes easy:100,realistic:101]

k-means, Gaussian mixture, TEMI (Adaloglou et al. 2023) and TURTLE (Gadetsky et al. 2024) on local
statistics and on the frozen tokens of networks pretrained by MoCo and by DeCUR. Dense pixels of
the test scenes, clusters matched on validation scenes. Runs are kept, so an interrupted benchmark
goes on. Writes ``runs/heads.csv``; the last line is all of it as JSON. Seeds 100 and 101 are for
choices; report on others.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from umsf_lib.baselines.scan import nearest_neighbours
from umsf_lib.clustering.inference import Classifier
from umsf_lib.clustering.losses import soft_cross_entropy
from umsf_lib.clustering.mixture import Clusterer, fit, posterior_map
from umsf_lib.clustering.stage import feature_tokens
from umsf_lib.clustering.task import Bench
from umsf_lib.clustering.tokens import TokenMap
from umsf_lib.config import load_config
from umsf_lib.data.stage import load_data
from umsf_lib.evaluation.metrics import hungarian, scores
from umsf_lib.evaluation.stage import score_scenes
from umsf_lib.models.stage import train_despeckler
from umsf_lib.pretraining.momentum import key_network, momentum_update
from umsf_lib.pretraining.stage import load_pretrained, pretrain
from umsf_lib.run import Run, project_root, write_atomically
from umsf_lib.training.loop import print_progress

# Published: 16 to 50 heads of 512 and 256 units, 100 epochs at 1e-4; our tokens have 16 dimensions.
TEMI_HEADS, TEMI_NEIGHBOURS, TEMI_EPOCHS, TEMI_BATCH = 8, 50, 20, 512
# Published: 6000 steps at 1e-3 on hundreds of dimensions, where ten inner steps go further.
TURTLE_STEPS, TURTLE_INNER, TURTLE_BATCH, TURTLE_LR = 1000, 10, 4000, 1e-2


@dataclass
class Rows:
    """A function of standardised rows as a ``Clusterer``."""

    num_clusters: int
    function: Callable[[Tensor], Tensor]  # (n, D) float32 -> (n, K)
    mean: np.ndarray
    std: np.ndarray

    def posteriors(self, tokens: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            found = self.function(torch.from_numpy((tokens - self.mean) / self.std).float())
        return found.double().numpy()


class TemiHead(nn.Module):
    """MLP, unit sphere, weight-normed prototypes; logits at temperature .1."""

    def __init__(self, dim: int, num_clusters: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(dim, 128), nn.GELU(), nn.Linear(128, 64))
        self.last = weight_norm(nn.Linear(64, num_clusters, bias=False))
        self.last.parametrizations.weight.original0.data.fill_(1.0)
        self.last.parametrizations.weight.original0.requires_grad_(False)

    def forward(self, rows: Tensor) -> Tensor:
        logits: Tensor = self.last(F.normalize(self.mlp(rows), dim=1)) / 0.1
        return logits.softmax(dim=1)


def temi_pmi(student: Tensor, teacher: Tensor, marginal: Tensor, beta: float) -> Tensor:
    """``ln sum_c (q_s(c|x) q_t(c|x'))^beta / q_t(c)`` of each pair, ``(n,)``."""
    return ((student * teacher) ** beta / marginal).sum(dim=1).clamp_min(1e-12).log()


def fit_temi(tokens: np.ndarray, num_clusters: int, seed: int, beta: float) -> Rows:
    """The head of the lowest loss in the last epoch."""
    torch.manual_seed(seed)
    mean, std = tokens.mean(axis=0), tokens.std(axis=0) + 1e-6
    rows = torch.from_numpy((tokens - mean) / std).float()
    pairs = nearest_neighbours(rows, TEMI_NEIGHBOURS)[:, 1:]
    students = [TemiHead(rows.shape[1], num_clusters) for _ in range(TEMI_HEADS)]
    teachers = [key_network(head) for head in students]
    marginals = [torch.full((num_clusters,), 1 / num_clusters) for _ in students]
    optimizer = torch.optim.AdamW(
        [p for head in students for p in head.parameters() if p.requires_grad], 1e-3
    )
    for _ in range(TEMI_EPOCHS):
        totals = torch.zeros(len(students))
        for index in torch.randperm(len(rows)).split(TEMI_BATCH):
            partner = pairs[index, torch.randint(pairs.shape[1], (len(index),))]
            views = (rows[index], rows[partner])
            with torch.no_grad():
                taught = [[head(view) for view in views] for head in teachers]
                alike = torch.stack([(a * b).sum(dim=1) for a, b in taught]).mean(dim=0)  # (n,)
            losses = []
            for number, head in enumerate(students):
                first, second = taught[number]
                marginals[number] = 0.9 * marginals[number] + 0.1 * first.mean(dim=0)
                pmi = temi_pmi(head(views[0]), second, marginals[number], beta)
                pmi = pmi + temi_pmi(head(views[1]), first, marginals[number], beta)
                losses.append(-(alike * pmi).mean() / 2)
            optimizer.zero_grad(set_to_none=True)
            torch.stack(losses).sum().backward()
            optimizer.step()
            for teacher, head in zip(teachers, students, strict=True):
                momentum_update(teacher, head, 0.996)
            totals += torch.stack(losses).detach() * len(index)
    return Rows(num_clusters, teachers[int(totals.argmin())], mean, std)


def fit_turtle(
    tokens: np.ndarray, spaces: Sequence[int], num_clusters: int, seed: int, gamma: float
) -> Rows:
    """Labels that linear classifiers in every space (widths ``spaces``) find again.

    The inner classifiers start afresh in each step; the labels follow their stopped answers and
    must not collapse (entropy of their mean, weight ``gamma``).
    """
    torch.manual_seed(seed)
    mean, std = tokens.mean(axis=0), tokens.std(axis=0) + 1e-6
    rows = torch.from_numpy((tokens - mean) / std).float()
    task = nn.ModuleList(weight_norm(nn.Linear(width, num_clusters)) for width in spaces)
    optimizer = torch.optim.Adam(task.parameters(), TURTLE_LR)

    def labels_of(parts: Sequence[Tensor]) -> Tensor:
        each = [layer(part).softmax(dim=1) for layer, part in zip(task, parts, strict=True)]
        return torch.stack(each)  # (S, n, K)

    for _ in range(TURTLE_STEPS):
        index = torch.randint(len(rows), (min(TURTLE_BATCH, len(rows)),))
        parts = rows[index].split(list(spaces), dim=1)
        each = labels_of(parts)
        labels = each.mean(dim=0)
        answers = _inner(parts, labels.detach(), num_clusters)
        loss = torch.stack([soft_cross_entropy(answer, labels) for answer in answers]).sum()
        shares = each.mean(dim=1)  # (S, K)
        entropy = -(shares * shares.clamp_min(1e-12).log()).sum()
        optimizer.zero_grad(set_to_none=True)
        (loss - gamma * entropy).backward()
        optimizer.step()
    return Rows(
        num_clusters, lambda x: labels_of(x.split(list(spaces), dim=1)).mean(dim=0), mean, std
    )


def _inner(parts: Sequence[Tensor], labels: Tensor, num_clusters: int) -> list[Tensor]:
    """Logits of fresh linear classifiers after a few Adam steps on fixed labels."""
    layers = [nn.Linear(part.shape[1], num_clusters) for part in parts]
    optimizer = torch.optim.Adam([p for layer in layers for p in layer.parameters()], TURTLE_LR)
    for _ in range(TURTLE_INNER):
        loss = sum(
            soft_cross_entropy(layer(part), labels)
            for layer, part in zip(layers, parts, strict=True)
        )
        optimizer.zero_grad(set_to_none=True)
        torch.as_tensor(loss).backward()
        optimizer.step()
    return [layer(part).detach() for layer, part in zip(layers, parts, strict=True)]


def joined(maps: Sequence[TokenMap]) -> TokenMap:
    return lambda scene: torch.cat([tokens(scene) for tokens in maps])


def spaces_of(run: Run, bench: Bench) -> dict[str, list[TokenMap]]:
    """Tokens of each space, and those that TURTLE sees together."""
    found = {"statistics": [bench.statistics]}
    for objective in ("moco", "decur"):
        learned = run.variant(objective, ("data", "despeckle"), pretrain={"objective": objective})
        pretrain(learned, bench.scenes, progress=print_progress(objective))
        network = load_pretrained(learned, bench.scenes).to(run.device).eval()
        fused = bench.reduced(feature_tokens(network, bench, "fused"))
        found[objective] = [fused]
        sensors = [bench.reduced(feature_tokens(network, bench, n)) for n in ("optical", "sar")]
        found[f"{objective}, both sensors and fused"] = [*sensors, fused]
        found[f"{objective} and statistics"] = [bench.statistics, fused]
    return found


def fits(
    tokens: np.ndarray, widths: Sequence[int], bench: Bench
) -> Iterator[tuple[str, Callable[[], Clusterer]]]:
    """Name and fit of each head; the others see one space, TURTLE may see several."""
    count, seed = bench.num_clusters, bench.config.seed
    if len(widths) == 1:
        for kind in ("kmeans", "mixture"):
            yield kind, lambda kind=kind: fit(kind, tokens, count, bench.config.cluster, seed)
        for beta in (1.0, 0.6):
            yield f"TEMI beta {beta:g}", lambda beta=beta: fit_temi(tokens, count, seed, beta)
    for gamma in (1.0, 3.0, 10.0):
        yield (
            f"TURTLE gamma {gamma:g}",
            lambda gamma=gamma: fit_turtle(tokens, widths, count, seed, gamma),
        )


def scored(bench: Bench, clusterer: Clusterer, tokens: TokenMap) -> dict[str, float]:
    found = Classifier(
        "head", bench.num_clusters, bench.stride, lambda s: posterior_map(clusterer, tokens, s)
    )
    val, test = (
        score_scenes([found], bench, bench.scenes.indices(part))["head"]["dense"].sum(axis=0)
        for part in ("val", "test")
    )
    result = scores(test, hungarian(val))
    return {name: round(float(result[name]), 4) for name in ("acc", "nmi", "macro_f1")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--scenes", default="easy:100,realistic:101", help="difficulty:seed,...")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for scenes in options.scenes.split(","):
        difficulty, seed = scenes.split(":")
        overrides = f"synthetic.difficulty={difficulty}"
        config = load_config(options.profile, seed=int(seed), overrides=overrides)
        run = Run.open(config, f"heads-{options.profile}-{difficulty}-{seed}")
        data = load_data(run)
        train_despeckler(run, data)
        bench = Bench.of_run(run, data)
        for space, maps in spaces_of(run, bench).items():
            parts = [bench.sample(tokens, bench.stride) for tokens in maps]
            widths = [part.shape[1] for part in parts]
            for head, make in fits(np.concatenate(parts, axis=1), widths, bench):
                begin = time.perf_counter()
                clusterer = make()
                row = {"difficulty": difficulty, "seed": int(seed), "tokens": space, "head": head}
                row |= scored(bench, clusterer, joined(maps))
                rows.append(row | {"seconds": round(time.perf_counter() - begin, 1)})
                print(rows[-1], flush=True)
                path, table = project_root() / "runs" / "heads.csv", pd.DataFrame(rows)
                write_atomically(path, lambda temporary, t=table: t.to_csv(temporary, index=False))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
