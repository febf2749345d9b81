"""Measurements of single parts, each with a main() that prints what it found."""
