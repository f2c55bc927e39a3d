"""In-flight batching: what the engines that this project runs itself have in common."""
