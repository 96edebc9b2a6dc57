"""Stage 2, distil: each client rewrites its responses with the base model, behind a gate."""
