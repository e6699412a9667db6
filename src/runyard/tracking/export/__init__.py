"""Runs as other programs keep them: TensorBoard, MLflow, CSV. Each file takes Histories, and writes a run once."""
