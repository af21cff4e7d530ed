"""The grids that come with imnet, a YAML file each; ``imnet-sweep --list`` shows them."""
