"""What the command line does, without a terminal: the demo, its report and its pictures."""
