"""The composition root: builds the jobs from the stages and runs them."""
