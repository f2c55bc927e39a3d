"""Dense models made into models with tracks, by distillation."""
