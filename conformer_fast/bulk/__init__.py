"""Many pictures to a file of results: a row a picture, in their order; a run that was broken off goes on."""
