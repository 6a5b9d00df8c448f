"""What is done around runs: plan, check, submit and watch them."""
