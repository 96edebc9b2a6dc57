"""What tests share; pytest finds it as `support`, see pyproject.toml."""
