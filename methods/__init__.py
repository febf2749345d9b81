"""Decoding: the engine, one loop, and the methods that run on it."""
