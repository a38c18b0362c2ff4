"""Encoders, their training, artifacts and evaluation. Knows neither Feast nor Redis."""
