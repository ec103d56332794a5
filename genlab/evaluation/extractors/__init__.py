"""Feature extractors: frozen networks that turn 8-bit images into the features that metrics are defined on."""

from genlab.evaluation.extractors.base import Extractor, Precision, check_images, metric_name
from genlab.evaluation.extractors.loading import NAMES, load_extractor

__all__ = ["NAMES", "Extractor", "Precision", "check_images", "load_extractor", "metric_name"]
