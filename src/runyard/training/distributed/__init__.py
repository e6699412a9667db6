"""How the ranks of one start find each other, agree, and learn of each other's end. Read ``process_group`` first."""
