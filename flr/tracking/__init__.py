"""What a run leaves behind: MLflow, provenance, pictures."""
