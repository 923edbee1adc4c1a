"""The alignment rules as statements about all 64-bit values, proved or refuted by z3 (extra ``proofs``).

From the inside out: ``symbolic`` and ``paths`` run Python on unknowns; ``situation``, ``limits`` and ``request`` run
the rules' and the model's own code so; ``claims`` says what can be claimed, ``properties``, ``statements`` and
``lattice`` ask; ``solver`` answers; ``example`` plays counterexamples back on numbers; ``answers`` runs whole tables.
The engine never imports this package.
"""
