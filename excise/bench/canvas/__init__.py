"""Canvas: the suite on the bundled model, where every picture can be judged and every method run on two cores."""
