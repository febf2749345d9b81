"""Measurements of our own speed: the engine, training, datastores and packed matrices."""
