"""What is measured while a network trains: accuracy and loss, times of steps, how busy the machines are."""
