"""Run many trainings as the jobs of one sweep."""
