"""Prediction: masks and measurements of images and volumes by trained networks."""

from inference.predictor import Predictor

__all__ = ["Predictor"]
