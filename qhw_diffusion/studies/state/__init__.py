"""Whether the state of a guidance policy is its bottleneck: six entries, seven, and a learned embedding."""
