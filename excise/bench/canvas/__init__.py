"""Canvas: suite on the bundled model, where every picture can be judged and every method runs on two cores."""
