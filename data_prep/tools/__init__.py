"""Commands that inspect, verify and change a finished data set."""
