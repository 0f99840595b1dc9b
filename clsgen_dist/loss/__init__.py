"""From the two heads' losses to the one number that is differentiated."""
