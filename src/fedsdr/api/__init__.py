"""The Python API: what `import fedsdr` offers, and what each command of the command line calls."""
