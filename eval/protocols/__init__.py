"""What is asked of features: arrays in, outcomes out. No files, no clock."""

from typing import Any

from eval.protocols.change import CHANGE
from eval.protocols.few_shot import FEW_SHOT
from eval.protocols.fine_tune import FINE_TUNE
from eval.protocols.knn import KNN
from eval.protocols.linear import LINEAR
from eval.protocols.multi_scale import MULTI_SCALE
from eval.protocols.retrieval import RETRIEVAL
from eval.protocols.segmentation import SEGMENTATION
from eval.protocols.task import Protocol

PROTOCOLS: tuple[Protocol[Any], ...] = (KNN, LINEAR, FEW_SHOT, MULTI_SCALE, RETRIEVAL, FINE_TUNE, SEGMENTATION, CHANGE)
"""All protocols, in the order of the report."""
TITLES = {name: title for protocol in PROTOCOLS for name, title in protocol.titles.items()}
"""Row → how the report calls it."""
