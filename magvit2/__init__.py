"""MAGVIT-v2 (Yu et al., ICLR 2024): the sequel, behind the interfaces of the first paper."""
