"""The chapters of the evidence, one an experiment, written from finished cells."""
