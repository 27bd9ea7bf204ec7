"""`ministream view`: the web page of a running job, of a folder of results, or of a volume."""
