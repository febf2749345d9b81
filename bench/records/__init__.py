"""The record room: what a run leaves behind, written line by line and read back as data frames. No torch."""
