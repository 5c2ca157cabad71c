"""The HTTP service: a policy, one pipeline with its erasers, and the requests that it answers."""
