"""What two or more rooms share. It knows no room and no business noun."""
