"""The demonstration on The Complete Journey."""
