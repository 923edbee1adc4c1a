"""One writer for each form of an answer: text for people, JSON, SARIF, HTML. Writers decide nothing."""
