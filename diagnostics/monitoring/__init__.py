"""What the monitor is made of: what it reports, what it shows, and which earlier run it goes on from."""
