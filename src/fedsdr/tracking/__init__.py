"""Following a run in other tools: TensorBoard, MLflow, Weights & Biases."""
