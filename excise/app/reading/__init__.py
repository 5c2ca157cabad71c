"""Reading of the states that SAEs are trained on: tokenised corpora, shards on disk, states made when needed."""
