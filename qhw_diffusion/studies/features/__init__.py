"""Which features the distribution term should compare, chosen by validation on the training side."""
