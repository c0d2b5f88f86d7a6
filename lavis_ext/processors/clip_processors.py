"""LAVIS' module name: CLIP's processors of pictures, under LAVIS' class names."""

from lavis_ext.processors.image import ClipImageEval as ClipImageEvalProcessor
from lavis_ext.processors.image import ClipImageTrain as ClipImageTrainProcessor

__all__ = ["ClipImageEvalProcessor", "ClipImageTrainProcessor"]
