"""Beyond the paper: one method, chosen on some seeds and confirmed on others."""
