"""Control servers: inside a job, or standalone."""
