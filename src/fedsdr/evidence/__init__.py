"""The evidence: the paper's claims tested on the lab, from planned cells to one document."""
