"""From files to batches: readers -> FaceTable -> splits -> crop store -> batches."""
