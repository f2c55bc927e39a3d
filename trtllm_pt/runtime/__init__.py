"""Running an engine: the scheduler, its pages and the sampling on rank 0; sessions on all ranks."""
