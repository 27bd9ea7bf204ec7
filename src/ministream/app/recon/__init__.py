"""The reconstruction job: what runs on every rank."""
