"""Many runs side by side: what differs, whether it is real, what it cost. From run directories alone, without torch."""
