"""What an answer is worth: blind baselines and rules, tables of scores, pictures of frames and cameras."""
