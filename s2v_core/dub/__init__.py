"""New speech on existing footage: the lower face is made anew, everything else stays as it was."""
