"""Fletcher as a service: requests of many callers in, vectors out, from batches that are filled across them."""
