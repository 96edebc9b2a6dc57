"""What every room stands on: adapters and their algebra, files, seeds, metrics, errors."""
