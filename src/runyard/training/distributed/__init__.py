"""How the ranks of one start meet, agree, and learn that one of them has ended. Read ``process_group`` first."""
