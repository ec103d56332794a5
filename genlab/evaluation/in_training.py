"""Scores while training: the same pass, on few samples, without files.

Every process samples and extracts its share and joins the sums; the main one computes the scores while the others go
on training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from genlab.core.errors import GenlabError
from genlab.evaluation.asks import Ask
from genlab.evaluation.collected import Collected
from genlab.evaluation.extractors import Extractor
from genlab.evaluation.metrics import METRICS, parse_requests
from genlab.evaluation.protocols import EvaluationSettings
from genlab.evaluation.scores import Comparison, Rules, compute
from genlab.evaluation.session import Processes, Session
from genlab.evaluation.sources import Draw, GeneratedImages, label_plan


def evaluate_in_training(
    draw: Callable[[Sequence[int]], Draw],
    num_classes: int,
    class_names: Sequence[str],
    image_size: int,
    reference: Collected,
    extractor: Extractor,
    settings: EvaluationSettings,
    processes: Processes,
) -> dict[str, float]:
    """Scores by name on the main process, nothing on the others. Call it on all, with averaged weights in place.

    Args:
        draw: the plan of labels -> what makes its images, such as
            `lambda labels: partial(sample_images, generator, labels, settings.seed, batch=settings.batch)`.
        reference: on `extractor`; see `genlab.evaluation.building` and `references`.
    """
    requests = [r for r in parse_requests(settings.metrics, extractor.family) if r.extractor == extractor.family]
    labels = label_plan(num_classes, settings.samples, "balanced", settings.seed)
    source = GeneratedImages(draw(labels), labels, class_names, image_size, {"run": "in training"})
    ask = Ask(extractor, frozenset(METRICS[request.metric].need for request in requests))
    result = Session(source, [ask], processes).run()
    if processes.process_index != 0:
        return {}
    generated = result.collected[extractor.name]
    comparison = Comparison(extractor, generated, reference, Rules(), digits=False)
    scores, _ = compute(comparison, [request.metric for request in requests])
    if not scores:
        raise GenlabError("evaluation: none of its metrics can be computed; see `genlab evaluate` for the reasons")
    return {f"eval/{score.name}": score.value for score in scores}
