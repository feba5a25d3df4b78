"""What the cache guard is made of: keys of requests, kept answers, and identical requests that share one call."""
