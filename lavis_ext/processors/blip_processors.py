"""LAVIS' module name: BLIP's and BLIP-2's processors, under LAVIS' class names."""

from lavis_ext.processors.base_processor import BaseProcessor
from lavis_ext.processors.image import Blip2ImageTrain as Blip2ImageTrainProcessor
from lavis_ext.processors.image import BlipImageEval as BlipImageEvalProcessor
from lavis_ext.processors.image import BlipImageTrain as BlipImageTrainProcessor
from lavis_ext.processors.image import SquareImage as BlipImageBaseProcessor
from lavis_ext.processors.text import BlipCaption as BlipCaptionProcessor
from lavis_ext.processors.text import BlipQuestion as BlipQuestionProcessor

__all__ = [
    "BaseProcessor",
    "Blip2ImageTrainProcessor",
    "BlipCaptionProcessor",
    "BlipImageBaseProcessor",
    "BlipImageEvalProcessor",
    "BlipImageTrainProcessor",
    "BlipQuestionProcessor",
]
