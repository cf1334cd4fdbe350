"""What is minimised: small files over one way of computing log-probabilities."""
