"""Coverage-guided fuzzing of the readers with atheris: ``make fuzz-parsers``. Never part of ``make test``."""
