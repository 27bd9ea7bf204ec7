"""Both jobs on one machine or under a scheduler."""
