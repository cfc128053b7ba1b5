"""Groups of commands of `fortifai`, one file each."""
