"""The lab notebook: the paper's claims tested on the synthetic lab, cell by cell, with verdicts."""
