"""Search over temperature and granularity with Ray Tune."""
