"""Entry points: run and publish notebooks, write the README, train the networks."""
