"""What models cost: operator counts, shapes, and the roofline that turns them into time laws."""
