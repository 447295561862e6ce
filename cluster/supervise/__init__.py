"""Inside a job: start the ranks, watch them, and decide after their end whether the job runs again."""
