"""Coverage-guided fuzzing of the readers with atheris: ``make fuzz-readers``. Never part of ``make test``."""
