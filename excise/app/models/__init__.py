"""Loading what a command works on: pipelines, language models, SAEs, devices."""
