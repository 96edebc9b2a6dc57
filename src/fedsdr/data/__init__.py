"""Stage 1, data: records, where they come from, who holds them, and how they become batches."""
