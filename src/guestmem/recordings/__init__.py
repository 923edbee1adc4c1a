"""Recorded operations: the vocabulary, reading it, running it on any backend, comparing outcomes."""
