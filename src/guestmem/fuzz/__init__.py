"""Random sequences of operations, run on two backends; what differs, made as small as it gets."""
