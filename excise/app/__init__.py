"""The work behind the commands, without a terminal."""
