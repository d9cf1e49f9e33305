"""What the paper compares with: Tables 4 to 7 and Fig. 5, each one command."""
