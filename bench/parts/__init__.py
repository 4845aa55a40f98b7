"""What single benches are made of: peers, plots, offline reports. Not programs of their own."""
