"""Do a whole run without notebooks: all stages, and the methods that the run compares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from ..baselines import BASELINES, LEARNED, Fit
from ..clustering.inference import Classifier
from ..clustering.stage import cluster, clustered_classifier, feature_tokens, load_clustered
from ..clustering.task import ClusteringTask
from ..clustering.tokens import TokenMap
from ..data.scene_set import SceneSet
from ..data.stage import load_data
from ..evaluation.stage import evaluate, fitted_matching, load_records
from ..maps.stage import write_maps
from ..models.stage import train_despeckler
from ..pretraining.stage import load_pretrained, pretrain
from ..progress import print_progress
from ..run import Run
from ..supervised import CEILING, has_ceiling


def clusters_of_pretrained(kind: str, run: Run, task: ClusteringTask) -> Classifier:
    """Cluster the fused tokens of the pretrained network by ``kind`` (see ``mixture.fit``)."""

    def make() -> TokenMap:
        network = load_pretrained(run, task.scenes).to(run.device).eval()
        return feature_tokens(network, task, "fused")

    tokens = task.shared("pretrained", make)
    return task.cluster(f"{kind}-pretrained", kind, tokens, task.stride)


def ours(run: Run, task: ClusteringTask) -> Classifier:
    """Return the classifier of UMSF-Net: the self-trained network and its teacher."""
    return clustered_classifier(load_clustered(run, task), task)


def teacher(run: Run, task: ClusteringTask) -> Classifier:
    """Return the classifier of the teacher alone, without what the network has learnt from it."""
    return clustered_classifier(load_clustered(run, task), task, "teacher", 1.0)


PRETRAINED: dict[str, Fit] = {
    f"{kind}-pretrained": partial(clusters_of_pretrained, kind)
    for kind in ("kmeans", "mixture", "merged")
}
TRAINED = LEARNED | CEILING  # each has its own stage
METHODS: dict[str, Fit] = BASELINES | PRETRAINED | TRAINED | {"teacher": teacher, "umsf": ours}
# The other methods start from random weights.
FROM_PRETRAINED = {*PRETRAINED, "mutual-information", "swav", "scan", "teacher", "umsf"}
USUAL = (*BASELINES, *PRETRAINED, "umsf")  # these take only seconds, besides our own training


def stages_of(method: str) -> tuple[str, ...]:
    """Return the stages of a run that a method uses.

    Methods that are fitted within seconds have no stage of their own.
    """
    if method in BASELINES and not method.endswith("-random"):
        return ()
    if method.startswith("supervised-"):
        return (method,)
    started = ("despeckle", "pretrain") if method in FROM_PRETRAINED else ("despeckle",)
    own = {"umsf": ("cluster",), "teacher": ("cluster",)} | {name: (name,) for name in TRAINED}
    return (*started, *own.get(method, ()))


def methods(
    run: Run, task: ClusteringTask, names: Sequence[str] = USUAL
) -> dict[str, Callable[[], Classifier]]:
    """Return a function for each method that a run compares, which makes its classifier.

    These are the named methods and those that the run has scored before. Learned baselines that the
    run lacks are trained now. The supervised ceiling is left out if the data has none (see
    ``has_ceiling``).

    Raises:
        MissingStageError: ``umsf`` or ``teacher`` is one of them, but the run has no finished
            clustering.
    """
    wanted = {*names, *load_records([run.folder]).method}
    if wanted & {"teacher", "umsf"}:
        run.outputs_of("cluster")  # fails now, not after all others have been fitted
    if wanted.intersection(CEILING) and not has_ceiling(task.scenes):
        wanted -= set(CEILING)
    for name in TRAINED:
        if name in wanted:
            TRAINED[name](run, task, progress=print_progress(name))
    return {name: partial(fit, run, task) for name, fit in METHODS.items() if name in wanted}


def pretrain_run(run: Run) -> SceneSet:
    """Run the stages up to pretraining, skipping those that are up to date; return the scenes."""
    scenes = load_data(run, progress=print_progress("data"))
    train_despeckler(run, scenes, progress=print_progress("despeckle"))
    pretrain(run, scenes, progress=print_progress("pretrain"))
    return scenes


def run_everything(run: Run, names: Sequence[str] = USUAL, *, maps: bool = False) -> None:
    """Run all stages of a run, skipping those that are up to date.

    Args:
        run: an open run.
        names: methods to compare.
        maps: also write the maps of the test scenes.
    """
    needed = {stage for name in names for stage in stages_of(name)}
    if maps or "pretrain" in needed:
        scenes = pretrain_run(run)
    else:
        scenes = load_data(run, progress=print_progress("data"))
        if "despeckle" in needed:
            train_despeckler(run, scenes, progress=print_progress("despeckle"))
    task = ClusteringTask.of_run(run, scenes)
    if {"teacher", "umsf"} & set(names):
        cluster(run, task, progress=print_progress("cluster"))
    evaluate(run, task, methods(run, task, names), progress=print_progress("evaluate"))
    if maps:
        mapping = fitted_matching(run, "umsf")
        test, progress = scenes.indices("test"), print_progress("maps")
        write_maps(run, task, ours(run, task), mapping, test, progress=progress)
