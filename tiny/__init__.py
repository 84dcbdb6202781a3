"""Three tiny problem sets and three tiny base models, and the scripts that make them."""
