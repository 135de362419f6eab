"""Prediction: videos, pictures and arrays in, classes and scores out, with the evaluator's own clips and crops."""
