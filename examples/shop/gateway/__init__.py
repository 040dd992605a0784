"""The shop's front door: knows the people, checks what they may do, and passes their wishes on to orders."""
