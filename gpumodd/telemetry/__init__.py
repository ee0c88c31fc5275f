"""What the daemon says about itself while it runs; everything but core and wire may import it."""
