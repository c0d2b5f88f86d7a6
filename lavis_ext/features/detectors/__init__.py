"""Detectors by name: networks that turn images into boxes, region features, classes and attributes."""

from __future__ import annotations

from lavis_ext.features.detectors.base import DetectedRegions, Detector, DetectorOptions, geometry

__all__ = ["DetectedRegions", "Detector", "DetectorOptions", "build_detector", "geometry"]


def build_detector(name: str, options: DetectorOptions | None = None) -> Detector:
    """The detector of that registered name, its weights loaded.

    Raises RegistryError for an unknown name (the nearest is named), UsageError where weights are missing,
    IntegrityError where they do not fit.
    """
    from lavis_ext.common.registry import detectors

    made: Detector = detectors.get(name)(options or DetectorOptions())
    return made
