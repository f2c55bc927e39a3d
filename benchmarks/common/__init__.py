"""What the scripts beside this folder share: the limits of a machine, and other engines measured in turn with ours."""
