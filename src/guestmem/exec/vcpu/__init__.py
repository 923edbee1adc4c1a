"""A virtual CPU that runs the guest's own code (x86-64, long mode) over the model's stage-2 translation.

``engine`` alone imports Unicorn; the rest is its surroundings: the walk of the guest's page tables, exceptions, exits.
"""
