"""Measurements, never tests: `make bench` prints ratios against the peer, taken in one run on one machine."""
