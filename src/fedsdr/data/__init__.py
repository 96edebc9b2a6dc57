"""Stage 1, data: records, their sources, their partition among clients, and batches."""
