"""Control servers: inside a job, or alone."""
