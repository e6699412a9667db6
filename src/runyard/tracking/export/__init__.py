"""Exports each RunHistory to TensorBoard, MLflow or CSV. A second export of a run replaces the first."""
